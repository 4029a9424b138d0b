-- Hosts from DNS.
--
--   hosts = require "discovery.dns" { "_ssh._tcp.web.example.com", type = "SRV" }
--   hosts = require "discovery.dns" { "web.example.com" }
--
-- An SRV record names a host, whose name is its identity. An address has no other identity than itself: a new machine at an old address is
-- the same host to phased, so use SRV where you can. Every name is asked anew each time; a name that does not exist is an error, a name
-- without such records is no host.

local function address_of(record, options)
  return { address = record.address, labels = { dns = options.name } }
end

local function service_of(record, options, name)
  local host = {
    address = record.target,
    labels = { dns = name, priority = tostring(record.priority), weight = tostring(record.weight) },
  }
  local port_from = options.port_from or (name:match "^_ssh%._" and "record" or "ignore")
  if port_from == "record" then host.port = record.port end
  return host
end

return phased.discovery {
  name = "dns",
  options = {
    names = { "list", position = 1, required = true, doc = "The names to look up, in full." },
    type = { "text", values = { "A", "AAAA", "SRV" }, default = "A", doc = "Which records." },
    server = { "text", doc = "Whom to ask, as address and port; the machine's resolvers when absent." },
    port_from = {
      "text", values = { "record", "ignore" },
      doc = "record: the port of an SRV record is that of sshd, as it is by default for _ssh._tcp; ignore: it is some other service's.",
    },
  },
  hosts = function(options)
    local found, seen = {}, {}
    for _, name in ipairs(options.names) do
      for _, record in ipairs(phased.dns { name, type = options.type, server = options.server }) do
        local host = record.target and service_of(record, options, name) or address_of(record, { name = name })
        if not seen[host.address] then
          seen[host.address] = true
          found[#found + 1] = host
        end
      end
    end
    return found
  end,
}
