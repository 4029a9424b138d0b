-- Hosts from an Ansible inventory.
--
--   hosts = require "discovery.ansible" { "/etc/ansible/hosts", group = "web" }
--   hosts = require "discovery.ansible" { "/etc/ansible/inventory.py", group = "web:!canary" }
--
-- What it is told by its name: .json, or a URL, is the JSON of an inventory script's --list; .py, .sh, .rb and .pl are scripts and run with --list
-- as the project's user; .yml and .yaml, and directories, are given to ansible-inventory; all else is INI. format = says otherwise.
-- A host's name in the inventory is its id. ansible_host, ansible_port and ansible_user say how it is reached; its groups are the label
-- groups, and vars names further variables that become labels.

local SCRIPTS = { py = true, sh = true, rb = true, pl = true }

-- What may be said aloud of where: a URL may hold a password or a token.
local function shown(where)
  if not where:match "^%w+://" then return where end
  return (where:gsub("^(%w+://)[^/?#]*@", "%1"):gsub("[?#].*$", ""))
end

local function fail(where, text, ...)
  error(("%s: " .. text):format(shown(where), ...), 0)
end

local function format_of(options)
  if options.format then return options.format end
  local where = options.where
  if where:match "^https?://" then return "json" end
  local extension = (where:match "%.([^./]+)$" or ""):lower()
  if extension == "json" then return "json" end
  if SCRIPTS[extension] then return "script" end
  if extension == "yml" or extension == "yaml" or where:match "/$" then return "ansible-inventory" end
  return "ini"
end

------------------------------------------------------------------------------------------------------------------------ INI
-- groups[name] = { hosts = { [host] = true }, children = { [group] = true }, vars = {} }, hostvars[host] = {}.

local function new_inventory()
  return { groups = {}, hostvars = {} }
end

local function group_of(inventory, name)
  local group = inventory.groups[name]
  if not group then
    group = { hosts = {}, children = {}, vars = {} }
    inventory.groups[name] = group
  end
  return group
end

-- `a=1 b="x y" c='z'` as a list of pairs; false for a quote that is not closed.
local function pairs_of(text)
  local found = {}
  local at = 1
  while true do
    at = text:find("%S", at)
    if not at then return found end
    local first = text:sub(at, at)
    if first == "#" then return found end
    local name, after = text:match("^([%w_%.%-]+)=()", at)
    if not name then return nil, text:match("^%S+", at) end
    local value
    local quote = text:sub(after, after)
    if quote == '"' or quote == "'" then
      local close = text:find(quote, after + 1, true)
      if not close then return nil, text:sub(at) end
      value, at = text:sub(after + 1, close - 1), close + 1
    else
      value = text:match("^%S*", after)
      at = after + #value
    end
    found[#found + 1] = { name, value }
  end
end

-- web[01:20].example.com as its names.
local function expanded(where, line, pattern)
  local before, range, after = pattern:match "^(.-)%[([^%]]*)%](.*)$"
  if not before then return { pattern } end
  local from, to, step = range:match "^(%w+):(%w+):?(%d*)$"
  if not from then fail(where, "line %d: the range [%s] is not [from:to] or [from:to:step]", line, range) end
  step = math.max(1, math.tointeger(tonumber(step)) or 1)
  local names = {}
  local function add(middle)
    for _, rest in ipairs(expanded(where, line, after)) do
      if #names >= 10000 then fail(where, "line %d: %s is more than 10000 hosts", line, pattern) end
      names[#names + 1] = before .. middle .. rest
    end
  end
  if from:match "^%d+$" and to:match "^%d+$" then
    if math.tointeger(tonumber(from)) > math.tointeger(tonumber(to)) then fail(where, "line %d: the range [%s] goes backwards", line, range) end
    for n = math.tointeger(tonumber(from)), math.tointeger(tonumber(to)), step do
      add(("%0" .. #from .. "d"):format(n))
    end
  elseif #from == 1 and #to == 1 and from:match "%a" and to:match "%a" and from <= to then
    for code = from:byte(), to:byte(), step do add(string.char(code)) end
  else
    fail(where, "line %d: the range [%s] is neither of numbers nor of letters", line, range)
  end
  return names
end

local function read_ini(where, text)
  local inventory = new_inventory()
  local group, kind = "ungrouped", "hosts"
  local n = 0
  -- Ansible refuses groups that are only spoken of, so a slip in a name is not a group without hosts.
  local defined, spoken_of = { all = true, ungrouped = true }, {}
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    n = n + 1
    line = line:gsub("\r$", ""):match "^%s*(.-)%s*$"
    local section = line:match "^%[([^%[%]]+)%]%s*$" or line:match "^%[([^%[%]]+)%]%s*[#;]"
    if line == "" or line:match "^[#;]" then
      -- nothing
    elseif section then
      local name, what = section:match "^(.-):(.+)$"
      group, kind = name or section, what or "hosts"
      if kind ~= "hosts" and kind ~= "children" and kind ~= "vars" then
        fail(where, "line %d: a section is [group], [group:children] or [group:vars], not [%s]", n, section)
      end
      group_of(inventory, group)
      if kind == "vars" then spoken_of[group] = spoken_of[group] or n else defined[group] = true end
    elseif line:match "^%[" and (kind ~= "hosts" or not line:find("]", 1, true)) then
      fail(where, "line %d: %s is no section", n, line)
    elseif kind == "vars" then
      local name, value = line:match "^([%w_%.%-]+)%s*=%s*(.-)$"
      if not name then fail(where, "line %d: %s is not name=value", n, line) end
      group_of(inventory, group).vars[name] = value:match '^"(.*)"$' or value:match "^'(.*)'$" or value
    elseif kind == "children" then
      local child = line:match "^([^%s#;]+)"
      spoken_of[child] = spoken_of[child] or n
      group_of(inventory, child)
      group_of(inventory, group).children[child] = true
    else
      local pattern, rest = line:match "^(%S+)%s*(.*)$"
      local vars, wrong = pairs_of(rest)
      if not vars then
        fail(where, "line %d: %s is not name=value; what this reader does not know ansible-inventory may: format = \"ansible-inventory\"", n, wrong)
      end
      local port = pattern:match "^[^:%[]+:(%d+)$" or pattern:match "%]:(%d+)$" or pattern:match "%][^:%[%]]*:(%d+)$"
      if port then pattern = pattern:sub(1, -#port - 2) end
      for _, host in ipairs(expanded(where, n, pattern)) do
        group_of(inventory, group).hosts[host] = true
        local own = inventory.hostvars[host] or {}
        inventory.hostvars[host] = own
        if port then own.ansible_port = own.ansible_port or port end
        for _, pair in ipairs(vars) do own[pair[1]] = pair[2] end
      end
    end
  end
  local missing = {}
  for name, line in pairs(spoken_of) do
    if not defined[name] then missing[#missing + 1] = { line = line, name = name } end
  end
  table.sort(missing, function(a, b) return a.line < b.line end)
  if missing[1] then
    local words = {}
    for i, one in ipairs(missing) do words[i] = ("line %d: there is no group %s"):format(one.line, one.name) end
    fail(where, "%s: no [%s] in this inventory; write it, or mend the name", table.concat(words, "; "), missing[1].name)
  end
  return inventory
end

----------------------------------------------------------------------------------------------------------------------- JSON

local function as_table(where, value, what)
  if value == nil then return {} end
  if type(value) ~= "table" then fail(where, "%s must be a list or an object, not a %s", what, type(value)) end
  return value
end

-- The YAML plugin's form has objects in these places; read as lists they would be empty.
local function is_yamls(where, what)
  fail(where, "%s is an object, as Ansible's YAML plugin has it, and a script's --list has a list there; format = \"ansible-inventory\" reads such a file", what)
end

local function as_list(where, value, what)
  local list = as_table(where, value, what)
  if list[1] == nil and next(list) ~= nil then is_yamls(where, what) end
  return list
end

-- The form of an inventory script's --list; host_vars asks for one host's variables where _meta has none.
local function read_json(where, text, host_vars)
  local ok, data = pcall(phased.json.decode, text)
  if not ok then fail(where, "%s", tostring(data)) end
  if type(data) ~= "table" or data[1] ~= nil then
    fail(where, "must hold an object of groups, as an inventory script prints for --list")
  end
  -- A host without variables is null there, and nothing is left of it here.
  if text:find '"hosts"%s*:%s*{%s*"[^"]*"%s*:%s*null' then is_yamls(where, "hosts of a group") end
  local inventory = new_inventory()
  for name, content in pairs(data) do
    if name ~= "_meta" then
      content = as_table(where, content, "the group " .. name)
      if content[1] ~= nil then content = { hosts = content } end
      local group = group_of(inventory, name)
      for _, host in ipairs(as_list(where, content.hosts, "hosts of " .. name)) do
        if type(host) ~= "string" then fail(where, "a host of the group %s is no text", name) end
        group.hosts[host] = true
        inventory.hostvars[host] = inventory.hostvars[host] or {}
      end
      for _, child in ipairs(as_list(where, content.children, "children of " .. name)) do
        if type(child) ~= "string" then fail(where, "a child of the group %s is no text", name) end
        group_of(inventory, child)
        group.children[child] = true
      end
      group.vars = as_table(where, content.vars, "vars of " .. name)
    end
  end
  local meta = as_table(where, data._meta, "_meta")
  local known = meta.hostvars and as_table(where, meta.hostvars, "_meta.hostvars")
  for host in pairs(inventory.hostvars) do
    local own
    if known then
      own = as_table(where, known[host], "the variables of " .. host)
    elseif host_vars then
      own = host_vars(host)
    end
    inventory.hostvars[host] = own or {}
  end
  return inventory
end

-- The end of what a program said, in one line: of several only the first is shown.
local function said(result)
  local words = result.stderr:gsub("%s+", " "):match "^%s*(.-)%s*$"
  return words ~= "" and words:sub(-500) or "it printed no error"
end

local function read_script(options)
  local where = options.where
  local function run(...)
    -- A table that goes on after `...` would hold its first value only.
    local argv = { where, ... }
    argv.timeout, argv.check, argv.env = "1m", false, options.env
    local result = phased.exec(argv)
    if result.code ~= 0 then
      fail(where, "%s ended with %d: %s", table.concat({ ... }, " "), result.code, said(result))
    end
    if result.truncated then fail(where, "%s printed more than can be read", table.concat({ ... }, " ")) end
    return result.stdout
  end
  return read_json(where, run "--list", function(host)
    local ok, own = pcall(phased.json.decode, run("--host", host))
    if not ok or type(own) ~= "table" then fail(where, "--host %s printed no JSON object", host) end
    return own
  end)
end

local function read_by_ansible(options)
  local where = options.where
  -- What Ansible cannot read it leaves out with a warning, and the hosts in it would look as if they were gone.
  local env = { ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED = "true" }
  for name, value in pairs(options.env or {}) do env[name] = value end
  local ok, result = pcall(phased.exec, { options.command, "-i", where, "--list", timeout = "2m", check = false, env = env })
  if not ok then
    fail(where, "%s cannot be run: %s; install ansible-core, or give its path as command", options.command, result.message or tostring(result))
  end
  if result.code ~= 0 then
    fail(where, "%s ended with %d: %s", options.command, result.code, said(result))
  end
  if result.truncated then fail(where, "%s printed more than can be read", options.command) end
  return read_json(where, result.stdout)
end

---------------------------------------------------------------------------------------------------------------------- groups

-- How far a group is from the top: variables of a nearer one count less. A loop would have no depth.
local function depths(where, inventory)
  local parents = {}
  for name, group in pairs(inventory.groups) do
    for child in pairs(group.children) do
      parents[child] = parents[child] or {}
      parents[child][name] = true
    end
  end
  local depth = { all = 0 }
  local function of(name, path)
    if depth[name] then return depth[name] end
    if path[name] then fail(where, "the group %s is its own descendant", name) end
    path[name] = true
    local deepest = 0
    for parent in pairs(parents[name] or {}) do deepest = math.max(deepest, of(parent, path)) end
    path[name] = nil
    depth[name] = deepest + 1
    return depth[name]
  end
  for name in pairs(inventory.groups) do of(name, {}) end
  return depth, parents
end

-- groups_of[host] = every group it is in, nearest to the top first.
local function membership(where, inventory)
  local depth, parents = depths(where, inventory)
  local groups_of = {}
  local function add(host, name)
    local of = groups_of[host]
    if of[name] then return end
    of[name] = true
    for parent in pairs(parents[name] or {}) do add(host, parent) end
  end
  for host in pairs(inventory.hostvars) do
    groups_of[host] = { all = true }
  end
  for name, group in pairs(inventory.groups) do
    for host in pairs(group.hosts) do add(host, name) end
  end
  local ordered = {}
  for host, of in pairs(groups_of) do
    local list = {}
    for name in pairs(of) do list[#list + 1] = name end
    table.sort(list, function(a, b)
      if (depth[a] or 0) ~= (depth[b] or 0) then return (depth[a] or 0) < (depth[b] or 0) end
      return a < b
    end)
    ordered[host] = list
  end
  return ordered, groups_of
end

-- web:db = either, web:&blue = both, web:!canary = without.
local function matcher(where, inventory, pattern)
  local any, must, mustnt = {}, {}, {}
  for part in pattern:gmatch "[^:,]+" do
    local sign, name = part:match "^([&!]?)%s*(.-)%s*$"
    local list = sign == "&" and must or sign == "!" and mustnt or any
    if name ~= "all" and not inventory.groups[name] then
      local known = {}
      for group in pairs(inventory.groups) do known[#known + 1] = group end
      table.sort(known)
      fail(where, "there is no group %q; there are %s", name, table.concat(known, ", "))
    end
    list[#list + 1] = name
  end
  return function(of)
    local yes = #any == 0
    for _, name in ipairs(any) do yes = yes or of[name] end
    for _, name in ipairs(must) do yes = yes and of[name] end
    for _, name in ipairs(mustnt) do yes = yes and not of[name] end
    return yes
  end
end

----------------------------------------------------------------------------------------------------------------------- hosts

local function plain(where, host, name, value)
  if value == nil then return nil end
  if type(value) == "table" then fail(where, "%s of %s is no plain value", name, host) end
  local text = tostring(value)
  if text:find("{{", 1, true) then
    fail(where, "%s of %s is the template %s, which only Ansible itself can fill in; write the value", name, host, text)
  end
  return text
end

local function hosts(options)
  local where, format = options.where, format_of(options)
  local inventory
  if format == "script" then
    inventory = read_script(options)
  elseif format == "ansible-inventory" then
    inventory = read_by_ansible(options)
  else
    local text
    if where:match "^https?://" then
      text = phased.http { where, bearer = options.token, retries = 2 }.body
    else
      text = phased.read(where)
    end
    inventory = (format == "json" and read_json or read_ini)(where, text)
  end

  local ordered, groups_of = membership(where, inventory)
  local wanted = options.group and matcher(where, inventory, options.group) or function() return true end
  local names = {}
  for name in pairs(inventory.hostvars) do
    if wanted(groups_of[name]) then names[#names + 1] = name end
  end
  table.sort(names)

  local found = {}
  for i, name in ipairs(names) do
    local vars, groups = {}, {}
    for _, group in ipairs(ordered[name]) do
      for key, value in pairs((inventory.groups[group] or { vars = {} }).vars) do vars[key] = value end
      if group ~= "all" and group ~= "ungrouped" then groups[#groups + 1] = group end
    end
    for key, value in pairs(inventory.hostvars[name]) do vars[key] = value end
    local function var(first, second)
      local value = vars[first]
      if value == nil and second then value = vars[second] end
      return plain(where, name, first, value)
    end
    local port = var("ansible_port", "ansible_ssh_port")
    local host = {
      id = name,
      address = var("ansible_host", "ansible_ssh_host") or name,
      user = var("ansible_user", "ansible_ssh_user"),
      port = port and (math.tointeger(tonumber(port)) or fail(where, "ansible_port of %s is %q, which is no number", name, port)),
      zone = options.zone and var(options.zone),
      labels = { groups = groups[1] and table.concat(groups, ",") or nil },
    }
    for _, label in ipairs(options.vars or {}) do host.labels[label] = var(label) end
    found[i] = host
  end
  return found
end

return phased.discovery {
  name = "ansible",
  options = {
    where = { "text", position = 1, required = true, doc = "The inventory: an absolute path or a URL." },
    format = {
      "text", values = { "ini", "json", "script", "ansible-inventory" },
      doc = "What it is, where its name does not tell.",
    },
    group = { "text", doc = "Only hosts of this group; web:db is either, web:&blue both, web:!canary without." },
    vars = { "list", doc = "Variables that become labels." },
    zone = { "text", doc = "The variable that holds a host's failure domain." },
    command = { "text", default = "ansible-inventory", doc = "The program that reads what phased does not." },
    env = { "map", doc = "Further environment variables of the script." },
    token = { "secret", doc = "Sent to a URL as Authorization: Bearer." },
  },
  hosts = hosts,
}
