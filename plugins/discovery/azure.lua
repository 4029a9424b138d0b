-- Hosts from Microsoft Azure: virtual machines, found by Azure Resource Graph.
--
--   hosts = require "discovery.azure" { subscription = "0000...", tags = { role = "web" } }
--
-- On a machine of Azure's the token is that of its managed identity (client_id chooses one that was assigned). Elsewhere give a service
-- principal: tenant, client_id and client_secret = phased.secret "azure". It needs to read the subscription (the role Reader).
-- A machine's vmId is the host's id; its tags are the host's labels, and so are location, size, resource_group and subscription.

local STATES = {
  ["PowerState/running"] = "running", ["PowerState/starting"] = "starting", ["PowerState/stopping"] = "stopped",
  ["PowerState/stopped"] = "stopped", ["PowerState/deallocating"] = "stopped", ["PowerState/deallocated"] = "stopped",
}

-- One row for each machine, with the addresses of its first interface: a list of machines alone has none.
local QUERY = [[
Resources
| where type =~ 'microsoft.compute/virtualmachines'%s
| extend nic = tolower(tostring(properties.networkProfile.networkInterfaces[0].id))
| join kind=leftouter (
    Resources
    | where type =~ 'microsoft.network/networkinterfaces'
    | extend nic = tolower(id), first = properties.ipConfigurations[0].properties
    | extend private_ip = tostring(first.privateIPAddress), pip = tolower(tostring(first.publicIPAddress.id))
    | join kind=leftouter (
        Resources
        | where type =~ 'microsoft.network/publicipaddresses'
        | project pip = tolower(id), public_ip = tostring(properties.ipAddress)
      ) on pip
    | project nic, private_ip, public_ip
  ) on nic
| project id, name, location, resourceGroup, subscriptionId, tags, zones, vm_id = tostring(properties.vmId),
    size = tostring(properties.hardwareProfile.vmSize), power = tostring(properties.extended.instanceView.powerState.code),
    private_ip, public_ip
| order by id asc]]

local function decoded(body)
  local ok, value = pcall(phased.json.decode, body)
  return ok and type(value) == "table" and value or {}
end

-- Azure's own words for what went wrong.
local function words(answer)
  local value = decoded(answer.body)
  if type(value.error) == "table" then
    local details = type(value.error.details) == "table" and value.error.details[1]
    local more = type(details) == "table" and details.message and ": " .. details.message or ""
    return ("%s%s (%s)"):format(value.error.message or "no message", more, value.error.code or answer.status)
  end
  if type(value.error) == "string" then
    return ("%s (%s)"):format((value.error_description or "no description"):match "^[^\r\n]*", value.error)
  end
  return ("status %d: %s"):format(answer.status, answer.body:sub(1, 200))
end

local function escaped(text)
  return (text:gsub("[^%w%-%._~]", function(c) return ("%%%02X"):format(c:byte()) end))
end

-- In words, who asks.
local function account(options)
  if options.client_secret then return ("the client %s of the tenant %s"):format(options.client_id, options.tenant) end
  return "this machine's managed identity" .. (options.client_id and " " .. options.client_id or "")
end

local function token_of_secret(options)
  if not (options.tenant and options.client_id) then
    error("Azure: client_secret goes with tenant and client_id", 0)
  end
  local answer = phased.http {
    ("%s/%s/oauth2/v2.0/token"):format(options.login, escaped(options.tenant)), method = "POST", check = false, retries = 3,
    form = {
      grant_type = "client_credentials", client_id = options.client_id, client_secret = options.client_secret,
      scope = options.endpoint .. "/.default",
    },
  }
  if answer.status ~= 200 then
    error(("Azure refused a token for %s: %s; look at both ids, and whether the client secret has expired"):format(account(options), words(answer)), 0)
  end
  return decoded(answer.body).access_token
end

local function token_of_machine(options)
  local url = options.metadata .. "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=" .. escaped(options.endpoint .. "/")
  if options.client_id then url = url .. "&client_id=" .. escaped(options.client_id) end
  local ok, answer = pcall(phased.http, { url, headers = { metadata = "true" }, timeout = "5s", check = false, retries = 3 })
  if not ok then
    error(("Azure's metadata server cannot be asked for a token: %s; outside of Azure give tenant, client_id and client_secret"):format(answer.message or tostring(answer)), 0)
  end
  if answer.status ~= 200 then
    error(("Azure's metadata server gives no token for %s: %s; give this machine that identity, or tenant, client_id and client_secret"):format(account(options), words(answer)), 0)
  end
  return decoded(answer.body).access_token
end

local function remedy(status)
  if status == 401 then return "the token is not good: look at the tenant, and at this machine's clock" end
  if status == 403 then return "give the identity the role Reader in the subscription" end
  if status == 400 then return "look at the ids of the subscriptions, and at where" end
  if status == 404 then return "look at the ids of the subscriptions" end
  if status == 429 then return "ask less often (interval)" end
  return "look at Azure's status page"
end

-- A text in a query of Kusto.
local function quoted(text)
  return "'" .. text:gsub("\\", "\\\\"):gsub("'", "\\'") .. "'"
end

local function query(options)
  local conditions = {}
  for tag, value in pairs(options.tags or {}) do
    conditions[#conditions + 1] = ("\n| where tostring(tags[%s]) == %s"):format(quoted(tag), quoted(value))
  end
  if options.resource_group then
    conditions[#conditions + 1] = ("\n| where resourceGroup =~ %s"):format(quoted(options.resource_group))
  end
  if options.where then conditions[#conditions + 1] = "\n| where " .. options.where end
  local text = table.concat(conditions)
  -- A % would be read as a pattern's.
  return (QUERY:gsub("%%s", function() return text end))
end

local function host(row, options)
  -- One that is being made has none yet. What it is with a state that is not known here must not be guessed.
  local state = (row.power == nil or row.power == "") and "starting" or STATES[row.power]
  if not state then
    error(("Azure: machine %s is in the state %s, which phased does not know; filter it out with where, or upgrade phased"):format(row.name, tostring(row.power)), 0)
  end
  local at = row[options.address .. "_ip"]
  if not at or at == "" then
    if state == "running" then
      error(("Azure: machine %s has no %s address; choose another with address = ..., or filter it out"):format(row.name, options.address), 0)
    end
    at = row.name
  end
  local labels = {
    location = row.location, size = row.size, resource_group = row.resourceGroup, subscription = row.subscriptionId,
  }
  for name, value in pairs(type(row.tags) == "table" and row.tags or {}) do labels[name] = tostring(value) end
  local zone = type(row.zones) == "table" and row.zones[1]
  return {
    id = row.vm_id and row.vm_id ~= "" and row.vm_id or row.id,
    name = row.name,
    address = at,
    zone = zone and ("%s-%s"):format(row.location, zone) or row.location,
    user = options.user,
    labels = labels,
    state = state,
    reason = state ~= "running" and (row.power and row.power ~= "" and row.power or "no power state") or nil,
  }
end

local function hosts(options)
  if (options.subscription == nil) == (options.subscriptions == nil) then
    error("Azure: give subscription or subscriptions", 0)
  end
  local subscriptions = options.subscriptions or { options.subscription }
  local token = (options.client_secret and token_of_secret or token_of_machine)(options)
  if type(token) ~= "string" then error("Azure answered without a token", 0) end

  local found, skip, seen = {}, nil, {}
  repeat
    local answer = phased.http {
      options.endpoint .. "/providers/Microsoft.ResourceGraph/resources?api-version=2021-03-01", method = "POST",
      headers = { authorization = "Bearer " .. token }, check = false, retries = 4,
      json = {
        subscriptions = subscriptions, query = query(options),
        options = { ["$top"] = 1000, ["$skipToken"] = skip, resultFormat = "objectArray" },
      },
    }
    if answer.status ~= 200 then
      error(("Azure Resource Graph of subscription %s, asked by %s: %s; %s"):format(table.concat(subscriptions, ", "), account(options), words(answer), remedy(answer.status)), 0)
    end
    local page = decoded(answer.body)
    if answer.truncated or type(page.data) ~= "table" then
      error(("Azure Resource Graph of subscription %s: the answer is not what it should be"):format(table.concat(subscriptions, ", ")), 0)
    end
    for _, row in ipairs(page.data) do found[#found + 1] = host(row, options) end
    skip = page["$skipToken"]
    -- It has more and does not say how to ask for it: as a list of all, the others would look as if they were gone.
    if tostring(page.resultTruncated) == "true" and (not skip or skip == "") then
      error(("Azure Resource Graph of subscription %s, asked by %s: the answer is truncated (%d machines of %s) and says nothing of a next page; ask for fewer at once with resource_group, tags or where"):format(table.concat(subscriptions, ", "), account(options), #found, tostring(page.totalRecords or "more")), 0)
    end
    if skip and seen[skip] then error("Azure gives the same page again and again", 0) end
    if skip then seen[skip] = true end
  until not skip or skip == ""
  return found
end

return phased.discovery {
  name = "azure",
  options = {
    subscription = { "text", doc = "The subscription's id." },
    subscriptions = { "list", doc = "Several of them." },
    tags = { "map", doc = "Tags that a machine must have." },
    resource_group = { "text", doc = "Only machines of this resource group." },
    where = { "text", doc = "A further condition, in Kusto's words: location == 'westeurope'." },
    tenant = { "text", doc = "Of a service principal." },
    client_id = { "text", doc = "Of a service principal, or of a managed identity that was assigned to this machine." },
    client_secret = { "secret", doc = "Of a service principal." },
    address = { "text", values = { "private", "public" }, default = "private", doc = "Which address its sshd is reached at." },
    user = { "text", doc = "The user to log in as; that of ssh when absent." },
    endpoint = { "url", default = "https://management.azure.com", doc = "That of another cloud of Azure's." },
    login = { "url", default = "https://login.microsoftonline.com", doc = "Where a secret is exchanged for a token." },
    metadata = { "url", default = "http://169.254.169.254", doc = "Another metadata server." },
  },
  hosts = hosts,
}
