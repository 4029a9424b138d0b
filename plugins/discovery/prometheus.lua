-- Hosts as Prometheus is told of them: a file_sd file on this machine, or the address of an http_sd service.
--
--   hosts = require "discovery.prometheus" { "https://inventory.example.com/targets", token = phased.secret "inventory" }
--   hosts = require "discovery.prometheus" { "/etc/prometheus/targets/web.json" }
--
-- Both hold [{"targets": ["10.0.0.1:9100"], "labels": {"env": "prod"}}, ...]. The port of a target is that of its metrics, so it is not
-- used; port_from = "target" takes it as that of sshd. Another phased serves this form at /v1/inventory.

-- What may be said aloud of where: a URL may hold a password or a token.
local function shown(where)
  if not where:match "^%w+://" then return where end
  return (where:gsub("^(%w+://)[^/?#]*@", "%1"):gsub("[?#].*$", ""))
end

local function fail(where, text, ...)
  error(("%s: " .. text):format(shown(where), ...), 0)
end

local function fetch(options)
  local where = options.where
  if where:match "^https?://" then
    local answer = phased.http {
      where, bearer = options.token, headers = { accept = "application/json" }, timeout = "30s", retries = 2,
    }
    if answer.truncated then fail(where, "answers more than 16 MiB") end
    return answer.body
  end
  if where:match "%.ya?ml$" then
    fail(where, "is YAML; phased reads file_sd files in JSON")
  end
  return phased.read(where)
end

-- "10.0.0.1:9100", "[fd00::1]:9100", "web1" and "http://web1:9100/metrics" as address and port.
local function split(target)
  local rest = target:gsub("^%w+://", ""):gsub("/.*$", "")
  local address, port = rest:match "^%[([^%]]+)%]:?(%d*)$"
  if not address then
    address, port = rest:match "^([^:]+):?(%d*)$"
  end
  if not address then
    -- An IPv6 address without brackets has no port.
    address, port = rest, ""
  end
  return address, math.tointeger(tonumber(port))
end

local function hosts(options)
  local where = options.where
  local ok, groups = pcall(phased.json.decode, fetch(options))
  if not ok then fail(where, "%s", tostring(groups)) end
  if type(groups) ~= "table" or (next(groups) ~= nil and groups[1] == nil) then
    fail(where, 'must hold a list of target groups: [{"targets": [...], "labels": {...}}]')
  end

  local found, seen = {}, {}
  for n, group in ipairs(groups) do
    if type(group) ~= "table" or type(group.targets) ~= "table" then
      fail(where, "group %d has no list of targets", n)
    end
    local labels = group.labels or {}
    if type(labels) ~= "table" then fail(where, "the labels of group %d are no object", n) end
    for name, value in pairs(labels) do
      if type(value) ~= "string" then fail(where, "the label %s of group %d is no text", tostring(name), n) end
    end
    for _, target in ipairs(group.targets) do
      if type(target) ~= "string" or target == "" then fail(where, "a target of group %d is no text", n) end
      local address, port = split(target)
      local host = {
        address = address,
        id = labels[options.id] or labels.__meta_phased_host_id or address,
        name = labels[options.name] or labels.__meta_phased_host_name,
        zone = labels[options.zone] or labels.__meta_phased_zone,
        labels = labels,
      }
      if options.port_from == "target" then host.port = port end
      -- Several exporters of one machine are several targets.
      if not seen[host.id] then
        seen[host.id] = true
        found[#found + 1] = host
      end
    end
  end
  return found
end

return phased.discovery {
  name = "prometheus",
  options = {
    where = { "text", position = 1, required = true, doc = "The URL of an http_sd service, or the absolute path of a file_sd file in JSON." },
    token = { "secret", doc = "Sent to the service as Authorization: Bearer." },
    port_from = {
      "text", values = { "ignore", "target" }, default = "ignore",
      doc = "ignore: a target's port is that of its metrics; target: it is that of sshd.",
    },
    id = { "text", default = "__id", doc = "The label that holds a host's id; its address where there is none." },
    name = { "text", default = "__name", doc = "The label that holds its name; its id where there is none." },
    zone = { "text", default = "zone", doc = "The label that holds its failure domain." },
  },
  hosts = hosts,
}
