-- Hosts from Google Compute Engine.
--
--   hosts = require "discovery.gce" { project = "acme-prod", filter = "labels.role=web" }
--
-- On a machine of Google's the token is that of its service account, from the metadata server. Elsewhere give the JSON key file of a service
-- account as a secret: key = phased.secret "gcp.json". It needs compute.instances.list (roles/compute.viewer).
-- An instance's numeric id is the host's; its labels are the host's labels, and so are type, project and tags.

local STATES = {
  PROVISIONING = "starting", STAGING = "starting", RUNNING = "running", REPAIRING = "stopped", PENDING = "starting",
  STOPPING = "stopped", SUSPENDING = "stopped", SUSPENDED = "stopped", TERMINATED = "stopped", STOPPED = "stopped",
  PENDING_STOP = "running", DEPROVISIONING = "terminated",
}

local KIND = "compute#instanceAggregatedList"
local SCOPE = "https://www.googleapis.com/auth/compute.readonly"

local function decoded(body)
  local ok, value = pcall(phased.json.decode, body)
  return ok and type(value) == "table" and value or {}
end

-- Google's own words for what went wrong.
local function words(answer)
  local value = decoded(answer.body)
  if type(value.error) == "table" then
    local reason = type(value.error.errors) == "table" and value.error.errors[1] and value.error.errors[1].reason
    return ("%s (%s)"):format(value.error.message or "no message", reason or value.error.status or answer.status)
  end
  if type(value.error) == "string" then
    return ("%s (%s)"):format(value.error_description or "no description", value.error)
  end
  return ("status %d: %s"):format(answer.status, answer.body:sub(1, 200))
end

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

-- Whose an assertion is: its claims are signed, and can be read by everybody.
local function issuer(assertion)
  local bits, count, bytes = 0, 0, {}
  for letter in (assertion:match "^[^.]*%.([^.]*)" or ""):gmatch "." do
    bits, count = (bits << 6 | ((ALPHABET:find(letter, 1, true) or 1) - 1)) & 0xffff, count + 6
    if count >= 8 then
      count = count - 8
      bytes[#bytes + 1] = string.char(bits >> count & 0xff)
    end
  end
  return "the service account " .. tostring(decoded(table.concat(bytes)).iss or "of the key")
end

-- A token, and in words whose it is.
local function token_of_key(options)
  local assertion = phased.jwt {
    key = options.key, from_key = { iss = "client_email" }, claims = { scope = SCOPE, aud = options.token_url },
  }
  local answer = phased.http {
    options.token_url, method = "POST", check = false, retries = 3,
    form = { grant_type = "urn:ietf:params:oauth:grant-type:jwt-bearer", assertion = assertion },
  }
  if answer.status ~= 200 then
    error(("Google refused a token for %s: %s; make a new key, look whether the account is disabled, and at this machine's clock"):format(issuer(assertion), words(answer)), 0)
  end
  return decoded(answer.body).access_token, issuer(assertion)
end

local function token_of_machine(options)
  local url = options.metadata .. "/computeMetadata/v1/instance/service-accounts/" .. options.account .. "/token"
  local ok, answer = pcall(phased.http, { url, headers = { ["metadata-flavor"] = "Google" }, timeout = "5s", check = false, retries = 2 })
  if not ok then
    error(("Google's metadata server cannot be asked for a token: %s; outside of Google give key = phased.secret ..., the JSON key file of a service account"):format(answer.message or tostring(answer)), 0)
  end
  if answer.status ~= 200 then
    error(("Google's metadata server gives no token for the service account %s: %s; attach a service account to this machine, or give key"):format(options.account, words(answer)), 0)
  end
  return decoded(answer.body).access_token, ("the service account %s of this machine"):format(options.account)
end

local function remedy(status, options)
  if status == 401 then return "the token is not good: look at the key and at this machine's clock" end
  if status == 403 then return "give the service account roles/compute.viewer in the project, and enable the Compute Engine API there" end
  if status == 404 then return ("look at the project's id, %q"):format(options.project) end
  if status == 400 then return "look at the filter" end
  if status == 429 then return "ask less often (interval), or raise the quota of the Compute Engine API" end
  return "look at Google's status page"
end

local function escaped(text)
  return (text:gsub("[^%w%-%._~]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function last(path)
  return type(path) == "string" and path:match "([^/]+)$" or nil
end

local function address(instance, options)
  local card = type(instance.networkInterfaces) == "table" and instance.networkInterfaces[1] or {}
  if options.address == "private" then return card.networkIP end
  if options.address == "ipv6" then
    local access = type(card.ipv6AccessConfigs) == "table" and card.ipv6AccessConfigs[1] or {}
    return access.externalIpv6 or card.ipv6Address
  end
  local access = type(card.accessConfigs) == "table" and card.accessConfigs[1] or {}
  return access.natIP
end

local function host(instance, options)
  local state = STATES[instance.status]
  if not state then
    error(("Google: instance %s is in the state %s, which phased does not know; filter it out, or upgrade phased"):format(instance.name, tostring(instance.status)), 0)
  end
  local at = address(instance, options)
  if not at then
    if state == "running" then
      error(("Google: instance %s has no %s address; choose another with address = ..., or filter it out"):format(instance.name, options.address), 0)
    end
    at = instance.name
  end
  local labels = { project = options.project, type = last(instance.machineType) }
  for name, value in pairs(instance.labels or {}) do labels[name] = value end
  local tags = type(instance.tags) == "table" and instance.tags.items
  if type(tags) == "table" and tags[1] then labels.tags = table.concat(tags, ",") end
  return {
    id = tostring(instance.id or instance.name),
    name = instance.name,
    address = at,
    zone = last(instance.zone),
    user = options.user,
    labels = labels,
    state = state,
    reason = state ~= "running" and (instance.statusMessage or instance.status) or nil,
  }
end

local function hosts(options)
  local token, account = (options.key and token_of_key or token_of_machine)(options)
  if type(token) ~= "string" then error("Google answered without a token", 0) end

  local base = ("%s/compute/v1/projects/%s/aggregated/instances?maxResults=500&returnPartialSuccess=false"):format(options.endpoint, escaped(options.project))
  if options.filter then base = base .. "&filter=" .. escaped(options.filter) end
  local found, page, seen = {}, nil, {}
  repeat
    local answer = phased.http {
      page and base .. "&pageToken=" .. escaped(page) or base,
      headers = { authorization = "Bearer " .. token }, check = false, retries = 4,
    }
    if answer.status ~= 200 then
      error(("Google instances.aggregatedList of project %s, asked by %s: %s; %s"):format(options.project, account, words(answer), remedy(answer.status, options)), 0)
    end
    -- Nothing found is a list without items. Anything else, such as a proxy's own page, says nothing of the instances.
    local list = decoded(answer.body)
    if answer.truncated or list.kind ~= KIND or type(list.items or {}) ~= "table" then
      error(("Google instances.aggregatedList of project %s: the answer is not what it should be; look at endpoint, and at proxies on the way: %s"):format(options.project, answer.body:sub(1, 200)), 0)
    end
    for where, scope in pairs(list.items or {}) do
      if type(scope) ~= "table" or type(scope.instances or {}) ~= "table" then
        error(("Google instances.aggregatedList of project %s: what it says of %s is not what it should be"):format(options.project, tostring(where)), 0)
      end
      -- A zone that did not answer would look as if its instances were gone.
      if type(scope.warning) == "table" and scope.warning.code == "UNREACHABLE" then
        error(("Google instances.aggregatedList of project %s: %s cannot be reached; look at Google's status page"):format(options.project, where), 0)
      end
      for _, instance in ipairs(scope.instances or {}) do
        found[#found + 1] = host(instance, options)
      end
    end
    page = list.nextPageToken
    if page and seen[page] then error("Google gives the same page again and again", 0) end
    if page then seen[page] = true end
  until not page or page == ""
  return found
end

return phased.discovery {
  name = "gce",
  options = {
    project = { "text", required = true, doc = "The project's id." },
    filter = { "text", doc = "As instances.list takes it: labels.role=web AND zone eq .*-b." },
    key = { "secret", doc = "The JSON key file of a service account; that of this machine when absent." },
    account = { "text", default = "default", doc = "Which of this machine's service accounts." },
    address = { "text", values = { "private", "public", "ipv6" }, default = "private", doc = "Which address its sshd is reached at." },
    user = { "text", doc = "The user to log in as; that of ssh when absent." },
    endpoint = { "url", default = "https://compute.googleapis.com", doc = "Another endpoint than Google's." },
    metadata = { "url", default = "http://metadata.google.internal", doc = "Another metadata server." },
    token_url = { "url", default = "https://oauth2.googleapis.com/token", doc = "Where a key is exchanged for a token." },
  },
  hosts = hosts,
}
