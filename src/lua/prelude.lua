-- What every VM has besides Lua: a box that is the same in every process, and the objects that ask for steps.
-- Pinned with the code: a change that could change what a script does is a new version in prelude.rs.
-- `native` holds the functions of sandbox.rs and steps.rs; nothing of it is reachable from user code.

local native, phased = ...
local real_pcall, real_xpcall, real_error, real_type = pcall, xpcall, error, type
local real_tostring, real_setmetatable, real_next, real_concat = tostring, setmetatable, next, table.concat
local real_rep, real_format, real_unpack = string.rep, string.format, table.unpack
local rawget, rawset, rawlen, select, tonumber, ipairs, getmetatable = rawget, rawset, rawlen, select, tonumber, ipairs, getmetatable
local create, resume, yield, status = coroutine.create, coroutine.resume, coroutine.yield, coroutine.status
local tointeger, pack = math.tointeger, table.pack

---------------------------------------------------------------------------------------------------------------------- errors

-- What a failed step raises: `code`, `message` and its facts; as text, its message.
local Failure = { __name = "failure" }
Failure.__tostring = function(failure) return failure.message end
Failure.__concat = function(a, b)
  return (getmetatable(a) == Failure and a.message or a) .. (getmetatable(b) == Failure and b.message or b)
end
Failure.__metatable = false
local function failure(cause) return real_setmetatable(cause, Failure) end

-- A limit is not the author's to catch: it goes on up, whatever catches.
local function after(ok, value, ...)
  if not ok then
    if native.fatal(value) then real_error(value, 0) end
    return false, native.plain(value)
  end
  return true, value, ...
end

function pcall(f, ...) return after(real_pcall(f, ...)) end

function xpcall(f, handler, ...)
  return after(real_xpcall(f, function(value)
    if native.fatal(value) then return value end
    return handler(native.plain(value))
  end, ...))
end

----------------------------------------------------------------------------------------------------------------- determinism

function tostring(value)
  local kind = real_type(value)
  if kind == "table" or kind == "userdata" then
    local meta = getmetatable(value)
    if real_type(meta) == "table" and rawget(meta, "__tostring") ~= nil or native.has_tostring(value) then return real_tostring(value) end
    return kind
  end
  if kind == "function" or kind == "thread" then return kind end
  return real_tostring(value)
end

function pairs(t)
  local meta = getmetatable(t)
  if real_type(meta) == "table" and meta.__pairs then return meta.__pairs(t) end
  if real_type(t) ~= "table" then real_error("bad argument #1 to 'pairs' (table expected, got " .. real_type(t) .. ")", 2) end
  local keys, wrong = native.keys(t)
  if wrong then real_error("pairs over a table with a " .. wrong .. " as a key has no order: use texts or numbers as keys", 2) end
  local i = 0
  return function()
    while true do
      i = i + 1
      local key = keys[i]
      if key == nil then return nil end
      local value = rawget(t, key)
      if value ~= nil then return key, value end
    end
  end, t, nil
end

function next(t, key)
  if key ~= nil then real_error("next(t, key) is not offered, its order differs from run to run: use pairs(t)", 2) end
  local keys, wrong = native.keys(t)
  if wrong then real_error("next over a table with a " .. wrong .. " as a key has no order", 2) end
  local first = keys[1]
  if first == nil then return nil end
  return first, rawget(t, first)
end

function setmetatable(t, meta)
  if real_type(meta) == "table" and (rawget(meta, "__gc") ~= nil or rawget(meta, "__mode") ~= nil) then
    real_error("__gc and __mode are not offered: when they act differs from run to run", 2)
  end
  return real_setmetatable(t, meta)
end

math.random, math.randomseed = native.random, nil

local function index(value, what, level)
  return tointeger(value) or real_error("bad argument (" .. what .. " must be an integer)", level + 1)
end

-- No C function may loop over a length that a metamethod made up: these are Lua, whose instructions are counted.
function table.insert(t, ...)
  local n, count = rawlen(t), select("#", ...)
  if count == 1 then
    rawset(t, n + 1, (...))
  elseif count == 2 then
    local at, value = ...
    at = index(at, "position", 2)
    if at < 1 or at > n + 1 then real_error("bad argument #2 to 'insert' (position out of bounds)", 2) end
    for i = n, at, -1 do rawset(t, i + 1, rawget(t, i)) end
    rawset(t, at, value)
  else
    real_error("wrong number of arguments to 'insert'", 2)
  end
end

function table.remove(t, at)
  local n = rawlen(t)
  if at == nil then at = n end
  at = index(at, "position", 2)
  if n + 1 ~= at and (at < 1 or at > n + 1) and not (n == 0 and at == 0) then
    real_error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  local removed = rawget(t, at)
  for i = at, n do rawset(t, i, rawget(t, i + 1)) end
  return removed
end

function table.move(from, first, last, to, into)
  into = into or from
  if last >= first then
    if to > last or to <= first or into ~= from then
      for i = 0, last - first do into[to + i] = from[first + i] end
    else
      for i = last - first, 0, -1 do into[to + i] = from[first + i] end
    end
  end
  return into
end

local function bounded(first, last, what)
  if last - first > 1000000 then real_error(what .. " over more than a million values", 3) end
end

function table.concat(list, separator, first, last)
  first, last = first or 1, last or rawlen(list)
  bounded(first, last, "table.concat")
  return real_concat(list, separator, first, last)
end

function table.unpack(list, first, last)
  first, last = first or 1, last or rawlen(list)
  bounded(first, last, "table.unpack")
  return real_unpack(list, first, last)
end

-- Stable, so that equal things keep their order in every process.
function table.sort(list, less)
  less = less or function(a, b) return a < b end
  local n, width = rawlen(list), 1
  local from, to = list, {}
  while width < n do
    local i = 1
    while i <= n do
      local left, middle = i, i + width
      local right, stop, at = middle, i + 2 * width, i
      if middle > n + 1 then middle = n + 1 end
      if stop > n + 1 then stop = n + 1 end
      while left < middle or right < stop do
        if left < middle and (right >= stop or not less(from[right], from[left])) then
          to[at], left = from[left], left + 1
        else
          to[at], right = from[right], right + 1
        end
        at = at + 1
      end
      i = i + 2 * width
    end
    from, to = to, from
    width = width * 2
  end
  if from ~= list then for i = 1, n do list[i] = from[i] end end
end

---------------------------------------------------------------------------------------------------------------------- strings

function string.rep(text, n, separator)
  n = index(n, "count", 2)
  if n > 0 and (#text + (separator and #separator or 0)) * (n + 0.0) > 16 * 1024 * 1024 then
    real_error("string.rep would make more than 16 MiB", 2)
  end
  return real_rep(text, n, separator)
end

function string.format(template, ...)
  if string.find(template, "%%[-+ #0]*%d*%.?%d*p") then real_error("%p is not offered: addresses differ from run to run", 2) end
  local args = pack(...)
  for i = 1, args.n do
    local kind = real_type(args[i])
    if kind == "table" or kind == "function" or kind == "userdata" then args[i] = tostring(args[i]) end
  end
  return real_format(template, real_unpack(args, 1, args.n))
end

string.find, string.match = native.find, native.match

function string.gmatch(text, pattern, init)
  local at, last = init or 1, nil
  if at < 0 then at = #text + at + 1 end
  if at < 1 then at = 1 end
  local function following(start, stop, ...)
    if not start then at = #text + 2 return nil end
    at, last = stop + 1, stop
    if stop < start then at = start end
    return ...
  end
  return function()
    while at <= #text + 1 do
      local found = pack(native.scan(text, pattern, at, last))
      return following(real_unpack(found, 1, found.n))
    end
  end
end

-- Callbacks are called from Lua, so a step in one may wait.
function string.gsub(text, pattern, with, limit)
  local kind = real_type(with)
  if kind ~= "string" and kind ~= "number" and kind ~= "table" and kind ~= "function" then
    real_error("bad argument #3 to 'gsub' (string/function/table expected, got " .. kind .. ")", 2)
  end
  local anchored = pattern:sub(1, 1) == "^"
  local parts, at, last, copied, count = {}, 1, nil, 1, 0
  while at <= #text + 1 and (not limit or count < limit) do
    local found = pack(native.scan(text, pattern, at, last, true))
    local start, stop = found[1], found[2]
    if not start then break end
    count = count + 1
    local whole, value = text:sub(start, stop), nil
    if kind == "function" then
      value = with(real_unpack(found, 3, found.n))
    elseif kind == "table" then
      value = with[found[3]]
    else
      value = native.expand(real_tostring(with), whole, real_unpack(found, 3, found.n))
    end
    if value == nil or value == false then
      value = whole
    elseif real_type(value) ~= "string" and real_type(value) ~= "number" then
      real_error("invalid replacement value (a " .. real_type(value) .. ")", 2)
    end
    parts[#parts + 1] = text:sub(copied, start - 1)
    parts[#parts + 1] = real_tostring(value)
    copied, last = stop + 1, stop
    at = stop < start and start or stop + 1
    if anchored then break end
  end
  parts[#parts + 1] = text:sub(copied)
  return real_concat(parts), count
end

string.dump, string.pack, string.unpack, string.packsize = nil, nil, nil, nil
native.lock_strings()
coroutine, collectgarbage, dofile, loadfile, load, print, warn, _G = nil, nil, nil, nil, nil, nil, nil, nil

----------------------------------------------------------------------------------------------------------------------- fibres

-- A call runs as fibres: its own (branch "-") and those of run:parallel. `current` is the one that runs now; while a file is
-- loaded there is none.
local fibres, current, ready = {}, nil, {}

local function traced(value)
  if native.fatal(value) then return value end
  if real_type(value) == "table" and rawget(value, "traced") then return value end
  return { traced = true, value = native.plain(value), traceback = native.traceback() }
end

local function fibre(branch, f, parent)
  local made = { branch = branch, parent = parent, children = 0 }
  made.thread = create(function(...) return real_xpcall(f, traced, ...) end)
  fibres[branch] = made
  return made
end

local function run_ready()
  while #ready > 0 do
    local job = table.remove(ready, 1)
    local it = job.fibre
    current = it
    local back = pack(resume(it.thread, real_unpack(job, 1, job.n)))
    current = nil
    if status(it.thread) == "dead" then
      fibres[it.branch] = nil
      it.ok = back[1] and back[2]
      if it.ok then it.value = back[3] elseif back[1] then it.error = back[3] else it.error = back[2] end
      if not it.ok and native.fatal(it.error) then real_error(it.error, 0) end
      local parent = it.parent
      if parent then
        parent.children = parent.children - 1
        if parent.children == 0 then ready[#ready + 1] = { fibre = parent, n = 0 } end
      else
        return it
      end
    end
  end
end

-- Starts the call's own fibre, or goes on with the one that waited: for the driver.
local function start(f, ...)
  local job = pack(...)
  job.fibre = fibre("-", f, nil)
  ready[1] = job
  return run_ready()
end

local function go_on(branch, ...)
  local it = fibres[branch]
  if not it then return nil end
  local job = pack(...)
  job.fibre = it
  ready[#ready + 1] = job
  return run_ready()
end

----------------------------------------------------------------------------------------------------------------------- steps

local function waiting(what)
  if not current then
    real_error(what .. " can be used in the functions of a project only, while they are called: not while the file is loaded", 3)
  end
  return current
end

local function step(self, receiver, id, verb, ...)
  local it = waiting(receiver .. ":" .. verb)
  local first = ...
  local options = real_type(first) == "table" and first or {}
  local on_unknown = rawget(options, "on_unknown")
  while true do
    native.begin(it.branch, receiver, id, verb, ...)
    local how, value, cause = yield()
    if how == "ok" then return value end
    if how == "failed" then
      if rawget(options, "check") ~= false then real_error(failure(cause), 0) end
      if real_type(value) ~= "table" then value = {} end
      value.error = failure(cause)
      return value
    end
    -- Nobody can tell whether it happened; a function may find out.
    local verdict = nil
    if real_type(on_unknown) == "function" then verdict = on_unknown(self, failure(cause)) end
    if verdict == true then return {} end
    if verdict ~= false then real_error(failure(cause), 0) end
  end
end

local function parallel(receiver, branches, ...)
  local it = waiting(receiver .. ":parallel")
  native.check(receiver, "parallel", branches, ...)
  local names, children = {}, {}
  for name in pairs(branches) do names[#names + 1] = name end
  if #names == 0 then return {} end
  it.children = #names
  for i = 1, #names do
    local child = fibre(native.branch(it.branch, names[i]), branches[names[i]], it)
    children[i] = child
    ready[#ready + 1] = { fibre = child, n = 0 }
  end
  yield()
  local values = {}
  for i = 1, #names do
    if not children[i].ok then real_error(children[i].error, 0) end
    values[names[i]] = children[i].value
  end
  return values
end

-- The methods of `run` or `host`; `fields` are those that may be absent.
local function class(receiver, fields)
  local methods = {}
  for _, verb in ipairs(native.verbs(receiver)) do
    methods[verb] = function(self, ...) return step(self, receiver, self.id, verb, ...) end
  end
  methods.parallel = function(_, ...) return parallel(receiver, ...) end
  methods.fail = function(_, ...)
    real_error(failure { code = "failed", message = native.check(receiver, "fail", ...).text }, 0)
  end
  methods.service = function(self, unit)
    local function act(action)
      return function(_, options)
        local args = { unit, action = action }
        if options ~= nil then for key, value in pairs(options) do args[key] = value end end
        return step(self, receiver, self.id, "service", args)
      end
    end
    return { restart = act "restart", start = act "start", stop = act "stop", status = act "status" }
  end
  if receiver ~= "host" then methods.service = nil end
  return {
    __name = receiver,
    __index = function(_, key)
      local method = methods[key]
      if method == nil and not fields[key] then real_error(native.unknown(receiver, key), 2) end
      return method
    end,
    __newindex = function(_, key) real_error(receiver .. "." .. tostring(key) .. " cannot be set", 2) end,
    __tostring = function() return receiver end,
    __metatable = false,
  }
end

local Run = class("run", { reason = true, dir = true, release = true })
local Host = class("host", { zone = true })

local Release = { __name = "release", __metatable = false }
Release.__index = function(release, key)
  if key == "changed" then
    return function(_, glob) return native.changed(rawget(release, "changed_paths"), glob) end
  end
end

local function object(data, meta) return data and real_setmetatable(data, meta) end

local function objects(input)
  local release = object(input.release, Release)
  if input.run then input.run.release = release end
  if input.deployment then
    input.deployment.release = release
    input.deployment.previous = release and release.previous
    for _, host in ipairs(input.deployment.hosts) do object(host, Host) end
  end
  return object(input.run, Run), object(input.host, Host), release, input.deployment
end

---------------------------------------------------------------------------------------------------------------------- plugins

for _, name in ipairs(native.functions()) do
  phased[name] = function(...)
    if not native.in_plugin() then real_error(native.not_here(name), 2) end
    local it = waiting("phased." .. name)
    native.ask(it.branch, name, ...)
    local how, value, cause = yield()
    if how == "ok" then return value end
    real_error(failure(cause), 0)
  end
end

return { start = start, go_on = go_on, objects = objects }
