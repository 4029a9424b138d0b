-- Hosts from a cloud that phased does not ship: Hetzner, as an example of how to write one. Put it into plugins/discovery/ of your own.
--
--   hosts = require "discovery.hetzner" { token = phased.secret "hetzner", selector = "role=web" }

-- A host that has ended is no loss, so nothing may become one by a guess: what is not here is an error.
local STATES = {
  running = "running", starting = "starting", initializing = "starting", rebuilding = "starting",
  stopping = "stopped", off = "stopped", migrating = "stopped", deleting = "terminated",
}

return phased.discovery {
  name = "hetzner",
  -- What the project writes; phased checks it when the project is loaded. interval, timeout, min_hosts, max_shrink and max_age come by themselves.
  options = {
    token = { "secret", required = true, doc = "A token of the cloud project, for reading." },
    selector = { "text", doc = "Which labels: role=web,env!=test." },
    endpoint = { "url", default = "https://api.hetzner.cloud", doc = "Another endpoint." },
  },
  -- Returns hosts, or raises an error that says what to do. What it returns is checked, merged with other sources and kept.
  hosts = function(options)
    local found, page = {}, 1
    repeat
      local url = ("%s/v1/servers?per_page=50&page=%d"):format(options.endpoint, page)
      if options.selector then url = url .. "&label_selector=" .. options.selector:gsub("[^%w]", function(c) return ("%%%02X"):format(c:byte()) end) end
      -- A secret stays a handle: it is sent and never seen here. retries waits where the API says so.
      local answer = phased.http { url, bearer = options.token, check = false, retries = 3 }
      if answer.status == 401 then error("Hetzner refuses the token: make a new one in the project's console, under Security", 0) end
      if answer.status ~= 200 then error(("Hetzner answered %d: %s"):format(answer.status, answer.body:sub(1, 200)), 0) end

      local list = phased.json.decode(answer.body)
      for _, server in ipairs(list.servers) do
        local state = STATES[server.status]
        if not state then error(("Hetzner: server %s is in the state %s, which is not known here"):format(server.name, tostring(server.status)), 0) end
        local public = server.public_net.ipv4                         -- one with IPv6 alone has none
        local address = server.private_net[1] and server.private_net[1].ip or public and public.ip
        if not address then error(("Hetzner: server %s has neither a private nor a public IPv4 address; give it one, or filter it out"):format(server.name), 0) end
        found[#found + 1] = {
          id = tostring(server.id),                                   -- what stays the same, whatever becomes of name and address
          name = server.name,
          address = address,
          zone = server.location and server.location.name or nil,
          labels = server.labels,
          state = state,                                              -- only running hosts are deployed to
          reason = server.status ~= "running" and server.status or nil,
        }
      end
      page = list.meta.pagination.next_page
    until not page
    return found
  end,
}
