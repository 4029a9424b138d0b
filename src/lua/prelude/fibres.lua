-- Fibres, steps and the objects that ask for them. See box.lua for what may be used in here.

local native, own, phased = ...
local error, type, rawget, rawset, select, pack = error, type, rawget, rawset, select, table.pack
local create, resume, yield, status, isyieldable =
  coroutine.create, coroutine.resume, coroutine.yield, coroutine.status, coroutine.isyieldable
local pcall = pcall
local tostring, pairs, traced, remove, xpcall = tostring, own.pairs, own.traced, own.remove, own.real_xpcall
local setmetatable, unpack = own.real_setmetatable, own.real_unpack
local fatal, begin, ask, check, metatable_of = native.fatal, native.begin, native.ask, native.check, native.metatable
local branch_of, unknown, changed, in_plugin, not_here = native.branch, native.unknown, native.changed, native.in_plugin, native.not_here
local is_verb = native.is_verb

coroutine, collectgarbage, dofile, loadfile, load, print, warn, _G = nil, nil, nil, nil, nil, nil, nil, nil

-- What a failed step raises: `code`, `message` and its facts; as text, its message.
local Failure = { __name = "failure", __metatable = false }
Failure.__tostring = function(it) return tostring(it.message) end
local function said(value)
  if type(value) == "table" and metatable_of(value) == Failure then return tostring(value.message) end
  return value
end
Failure.__concat = function(a, b) return said(a) .. said(b) end

local function failure(cause)
  if type(cause) ~= "table" then cause = { code = "lua_internal", message = "the step ended without a cause" } end
  if metatable_of(cause) == Failure then return cause end
  return setmetatable(cause, Failure)
end

----------------------------------------------------------------------------------------------------------------------- fibres

-- A call runs as fibres: its own (branch "-") and those of run:parallel. `current` is the one that runs now; while a file is
-- loaded there is none. A fibre with `asked` waits for an answer, one with `children` for those.
local fibres, current, ready = {}, nil, {}

local function fibre(branch, f, parent)
  local it = { branch = branch, parent = parent, children = 0, asked = false }
  it.thread = create(function(...) return xpcall(f, traced, ...) end)
  fibres[branch] = it
  return it
end

-- Runs what can go on; returns the call's own fibre once it has ended.
local function run_ready()
  while #ready > 0 do
    local job = remove(ready, 1)
    local it = job.fibre
    current = it
    local back = pack(resume(it.thread, unpack(job, 1, job.n)))
    current = nil
    if status(it.thread) == "dead" then
      fibres[it.branch] = nil
      it.ok = back[1] and back[2]
      if it.ok then
        it.value = back[3]
      elseif back[1] then
        it.error = back[3]
      else
        it.error = back[2]
      end
      if not it.ok and fatal(it.error) then error(it.error, 0) end
      local parent = it.parent
      if not parent then return it end
      parent.children = parent.children - 1
      if parent.children == 0 then ready[#ready + 1] = { fibre = parent, n = 0 } end
    end
  end
end

-- For the driver: starts the call's own fibre.
local function start(f, ...)
  local job = pack(...)
  job.fibre = fibre("-", f, nil)
  ready[1] = job
  return run_ready()
end

-- For the driver: goes on with the fibre that waits for this answer. Nobody may be waiting for it.
local function go_on(branch, ...)
  local it = fibres[branch]
  if not it or not it.asked then return nil end
  it.asked = false
  local job = pack(...)
  job.fibre = it
  ready[#ready + 1] = job
  return run_ready()
end

-- The fibre that is going to wait.
local function waiting(what, whose)
  if not current then
    error(what .. " can be used in the functions of a " .. whose .. " only, while they are called: not while the file is loaded", 3)
  end
  if not isyieldable() then
    error(what .. " cannot wait in here: not at the top of a required file, not in the handler of xpcall, and not in a metamethod"
      .. " that a function of Lua itself calls", 3)
  end
  return current
end

local function wait(it)
  it.asked = true
  return yield()
end

----------------------------------------------------------------------------------------------------------------------- steps

-- What a step gives that an on_unknown function says has happened: nothing of its output is known.
local function happened(verb)
  if verb == "sh" or verb == "exec" or verb == "service" then
    return { stdout = "", stderr = "", code = 0, duration_ms = 0, truncated = false }
  elseif verb == "write" or verb == "upload" then
    return { changed = true }
  end
  return {}
end

local function step(self, receiver, id, verb, ...)
  local it = waiting(receiver .. ":" .. verb, "project")
  local first = ...
  local options = type(first) == "table" and first or {}
  local on_unknown, checked = rawget(options, "on_unknown"), rawget(options, "check")
  while true do
    begin(it.branch, receiver, id, verb, ...)
    local how, value, cause = wait(it)
    if how == "ok" then return value end
    if how == "failed" then
      if checked ~= false then error(failure(cause), 0) end
      if type(value) ~= "table" then value = {} end
      value.error = failure(cause)
      return value
    end
    -- Nobody can tell whether it happened; a function may find out.
    local verdict = nil
    if type(on_unknown) == "function" then verdict = on_unknown(self, failure(cause)) end
    if verdict == true then return happened(verb) end
    if verdict ~= false then error(failure(cause), 0) end
  end
end

local function parallel(receiver, ...)
  local it = waiting(receiver .. ":parallel", "project")
  check(receiver, "parallel", ...)
  local branches = ...
  local names, children, n = {}, {}, 0
  for name in pairs(branches) do
    n = n + 1
    names[n] = name
  end
  it.children = n
  for i = 1, n do
    local child = fibre(branch_of(it.branch, names[i]), branches[names[i]], it)
    children[i] = child
    ready[#ready + 1] = { fibre = child, n = 0 }
  end
  if n > 0 then yield() end
  local values = {}
  for i = 1, n do
    if not children[i].ok then error(children[i].error, 0) end
    values[names[i]] = children[i].value
  end
  return values
end

-- What a call leaves to be undone, should it fail.
local undos = {}

local function leave(receiver, ...)
  waiting(receiver .. ":undo", "project")
  local args = check(receiver, "undo", ...)
  native.undo()
  local first, f = ...
  if type(first) == "table" then f = rawget(first, 2) end
  undos[#undos + 1] = { name = args.name, f = f }
end

-- For the driver, after the call was replayed: none of its fibres goes on any more. All are undone, newest first, whatever one of them
-- raises; the first failure is the call's.
local function undo()
  fibres, current, ready = {}, nil, {}
  return start(function()
    local first
    for i = #undos, 1, -1 do
      local it = undos[i]
      local ok, why = pcall(it.f)
      if not ok then
        first = first or failure { code = "undo_failed", message = "undoing " .. it.name .. " failed: " .. tostring(why), undo = it.name }
      end
    end
    if first then error(first, 0) end
  end)
end

-- Every object that was given to a script: its class and id. A script may write into the object itself.
local made = setmetatable({}, { __mode = "k" })

-- `methods` are functions by name; `make`, where there is one, makes the others when they are first asked for.
local function strict(receiver, methods, absent, make)
  return {
    __name = receiver,
    __index = function(_, key)
      local method = methods[key]
      if method == nil and make then method = make(key) end
      if method == nil and not absent[key] then error(unknown(receiver, key), 2) end
      return method
    end,
    __newindex = function(_, key) error(receiver .. "." .. tostring(key) .. " cannot be set", 2) end,
    __tostring = function() return receiver end,
    __metatable = false,
  }
end

local SERVICE = { restart = true, start = true, stop = true, status = true }

-- host:service(unit): what can be done to it.
local function service(self, id, unit)
  local actions = {}
  for action in pairs(SERVICE) do
    actions[action] = function(_, options)
      local args = { unit, action = action }
      if options ~= nil then
        if type(options) ~= "table" then
          error("service:" .. action .. " takes its options in a table: host:service(\"shop\"):" .. action .. " { timeout = \"1m\" }", 2)
        end
        for key, value in pairs(options) do
          if key == "action" or type(key) == "number" then
            error("unknown option " .. tostring(key) .. " of service:" .. action, 2)
          end
          args[key] = value
        end
      end
      return step(self, "host", id, "service", args)
    end
  end
  return setmetatable({}, strict("service", actions, {}))
end

-- What is no step of its own.
local METHODS = {
  parallel = function(receiver) return function(_, _, ...) return parallel(receiver, ...) end end,
  undo = function(receiver) return function(_, _, ...) leave(receiver, ...) end end,
  fail = function(receiver)
    return function(_, _, ...) error(failure { code = "failed", message = check(receiver, "fail", ...).text }, 0) end
  end,
  service = function(receiver) return receiver == "host" and service end,
}

-- The class of `run` or `host`; `absent` are fields that may be nil. A call uses few of its methods.
local function class(receiver, absent)
  local methods = {}
  local Class
  local function make(name)
    local f = METHODS[name] and METHODS[name](receiver)
    if not f and type(name) == "string" and is_verb(receiver, name) then
      f = function(self, id, ...) return step(self, receiver, id, name, ...) end
    end
    if not f then return nil end
    methods[name] = function(self, ...)
      local it = made[self]
      if not it or it.class ~= Class then error(receiver .. ":" .. name .. " is called with a colon, on the " .. receiver, 2) end
      return f(self, it.id, ...)
    end
    return methods[name]
  end
  Class = strict(receiver, methods, absent, make)
  return Class
end

local Run = class("run", { reason = true, dir = true, release = true })
local Host = class("host", { zone = true })
local Deployment = strict("deployment", {}, { previous = true, release = true, rollback_of = true })
local Wave = strict("wave", {}, { release = true })

local function paths(release, glob)
  local it = made[release]
  if not it then error("release:changed is called with a colon, on the release", 2) end
  return changed(it.paths, glob)
end
-- `release.artifacts`: what is not there is named, with what is.
local Artifacts = {
  __name = "artifacts",
  __index = function(artifacts, name)
    local names = {}
    for other in pairs(artifacts) do names[#names + 1] = other end
    local there = #names == 0 and "it has none" or "it has " .. own.real_concat(names, ", ")
    error("the release has no artifact " .. tostring(name) .. ": " .. there .. " (run:artifact in a test stage makes them)", 2)
  end,
  __newindex = function(_, name) error("release.artifacts." .. tostring(name) .. " cannot be set", 2) end,
  __tostring = function() return "artifacts" end,
  __metatable = false,
}
local Release = strict("release", { changed = paths }, { branch = true, tag = true, previous = true })

local function object(data, meta)
  if type(data) ~= "table" then return nil end
  made[data] = { class = meta, id = rawget(data, "id"), paths = rawget(data, "changed_paths") }
  rawset(data, "changed_paths", nil)
  return setmetatable(data, meta)
end

local function objects(input)
  local release = object(input.release, Release)
  -- A call that an earlier version began was given none.
  if release and rawget(release, "artifacts") then setmetatable(rawget(release, "artifacts"), Artifacts) end
  local deployment = input.deployment
  if deployment then
    deployment.release = release
    deployment.previous = release and release.previous
    local hosts = deployment.hosts or {}
    for i = 1, #hosts do object(hosts[i], Host) end
    object(deployment, Deployment)
  end
  local wave = input.wave
  if wave then
    wave.release = release
    for i = 1, #wave.hosts do object(wave.hosts[i], Host) end
    object(wave, Wave)
  end
  if input.run then input.run.release = release end
  return object(input.run, Run), object(input.host, Host), release, deployment, wave
end

-- Of a function that answers yes or no, and why: both are what the call returns.
local function answered(f)
  return function(...)
    local yes, why = f(...)
    return { safe = not not yes, reason = why ~= nil and tostring(why) or nil }
  end
end

---------------------------------------------------------------------------------------------------------------------- plugins

local functions = native.functions()
for i = 1, #functions do
  local name = functions[i]
  phased[name] = function(...)
    if not in_plugin() then error(not_here(name), 2) end
    local it = waiting("phased." .. name, "plugin")
    ask(it.branch, name, ...)
    local how, value, cause = wait(it)
    if how == "ok" then return value end
    error(failure(cause), 0)
  end
end

return { start = start, go_on = go_on, undo = undo, objects = objects, answered = answered }
