-- Hosts from a JSON or CSV file on this machine.
--
--   hosts = require "discovery.file" { "/etc/phased/hosts.json" }
--
-- JSON: a list of addresses or host tables: [{"id": "web1", "address": "10.0.0.1", "labels": {"role": "web"}}, ...].
-- CSV: the first line names the columns: id,name,address,port,user,zone,labels.role,...; empty cells count as absent; several
-- host_keys in one cell have a semicolon between them.
-- A host whose state is stopped or terminated is out, and its reason is shown.
-- The file is read whenever the hosts are asked for, so it may change between deployments.

local COLUMNS = {
  id = true, name = true, address = true, port = true, user = true, zone = true, known_hosts = true, host_keys = true,
  jump = true, connect_timeout = true, path = true, base = true, state = true, reason = true,
}

local function fail(path, row, what)
  error(("%s: row %d %s"):format(path, row, what), 0)
end

-- A row of CSV as a host table.
local function host(path, n, row)
  local found = {}
  for column, cell in pairs(row) do
    local label = column:sub(1, 7) == "labels." and column:sub(8)
    if cell == "" then
      -- absent
    elseif label and label ~= "" then
      found.labels = found.labels or {}
      found.labels[label] = cell
    elseif not COLUMNS[column] then
      error(("%s: unknown column %q; known are id, name, address, port, user, zone, state, reason, known_hosts, host_keys, jump, connect_timeout, path, base and labels.<name>"):format(path, column), 0)
    elseif column == "port" then
      found.port = math.tointeger(tonumber(cell)) or fail(path, n, ("has the port %q, which is no number"):format(cell))
    elseif column == "host_keys" and not (cell == "pin" or cell == "ca" or cell == "tofu") then
      found.host_keys = {}
      for key in cell:gmatch "[^;]+" do
        found.host_keys[#found.host_keys + 1] = key:match "^%s*(.-)%s*$"
      end
    else
      found[column] = cell
    end
  end
  return found
end

-- What both formats must hold; anything finer is said by phased itself, by the number of the host.
local function check(path, rows)
  local seen = {}
  for n, row in ipairs(rows) do
    if type(row) == "string" then
      row = { address = row }
      rows[n] = row
    elseif type(row) ~= "table" then
      fail(path, n, ("is a %s, not a host table or an address"):format(type(row)))
    end
    if type(row.address) ~= "string" or row.address == "" then
      fail(path, n, "has no address")
    end
    local id = row.id or row.address
    if seen[id] then
      fail(path, n, ("has the id %q of row %d"):format(tostring(id), seen[id]))
    end
    seen[id] = n
  end
  return rows
end

return phased.discovery {
  name = "file",
  options = {
    path = { "path", position = 1, required = true, doc = "The file, absolute; its name ends in .json or .csv." },
  },
  hosts = function(options)
    local path = options.path
    local extension = (path:match "%.([^./]+)$" or ""):lower()
    if extension ~= "json" and extension ~= "csv" then
      error(("%s: its name must end in .json or .csv"):format(path), 0)
    end

    local text = phased.read(path)
    local decode = extension == "json" and phased.json.decode or phased.csv.decode
    local ok, rows = pcall(decode, text)
    if not ok then
      error(("%s: %s"):format(path, tostring(rows)), 0)
    end
    if type(rows) ~= "table" or (next(rows) ~= nil and rows[1] == nil) then
      error(("%s: must hold a list of hosts"):format(path), 0)
    end

    if extension == "csv" then
      local hosts = {}
      for n, row in ipairs(rows) do
        hosts[n] = host(path, n, row)
      end
      rows = hosts
    end
    return check(path, rows)
  end,
}
