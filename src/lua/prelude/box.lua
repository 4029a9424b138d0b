-- The box: Lua that is the same in every process and whose limits nobody catches.
-- Pinned with the code: a change that could change what a script does is a new version in prelude.rs.
--
-- `native` holds functions of sandbox.rs; nothing of it is reachable from user code but what is given out by name. A script may
-- overwrite whatever it sees (`table.remove = nil`), so everything used in here is a local taken before any script runs; no
-- method is called on a text, because `("x"):sub()` looks into the script's own `string`.

local native = ...
local real_pcall, real_xpcall, real_tostring = pcall, xpcall, tostring
local real_setmetatable, real_getmetatable, real_rawset = setmetatable, getmetatable, rawset
local real_concat, real_unpack = table.concat, table.unpack
local error, type, rawget, rawlen, select, pack = error, type, rawget, rawlen, select, table.pack
local tointeger, tonumber, real_next = math.tointeger, tonumber, next
local fatal, native_plain, native_keys, native_traceback = native.fatal, native.plain, native.keys, native.traceback
local metatable_of, set_metatable = native.metatable, native.set_metatable

---------------------------------------------------------------------------------------------------------------------- errors

-- What the end of a fibre carries: the value that was raised, and by way of which calls.
local Traced = {}

local function plain(value)
  if type(value) == "table" and metatable_of(value) == Traced then return value.value end
  return native_plain(value)
end

local function traced(value)
  if fatal(value) or type(value) == "table" and metatable_of(value) == Traced then return value end
  return real_setmetatable({ value = native_plain(value), traceback = native_traceback() }, Traced)
end

-- A limit is not the author's to catch: it goes on up, whatever catches.
local function after(ok, value, ...)
  if not ok then
    if fatal(value) then error(value, 0) end
    return false, plain(value)
  end
  return true, value, ...
end

function pcall(f, ...) return after(real_pcall(f, ...)) end

function xpcall(f, handler, ...)
  return after(real_xpcall(f, function(value)
    if fatal(value) then return value end
    return handler(plain(value))
  end, ...))
end

local function wrong(n, what, expected, value)
  local got = value == nil and "no value" or type(value)
  error("bad argument #" .. n .. " to '" .. what .. "' (" .. expected .. " expected, got " .. got .. ")", 3)
end

local function integer(value, n, what, default)
  if value == nil and default then return default end
  return tointeger(value) or type(value) == "string" and tointeger(tonumber(value)) or
    error("bad argument #" .. n .. " to '" .. what .. "' (number has no integer representation)", 3)
end

------------------------------------------------------------------------------------------------------------------ metatables

-- When __gc, __mode and __close act differs from run to run, and __close would run while a limit ends the call. A table that is
-- somebody's metatable gets a guard (a metatable of its own that passes on to the one the author gave it), so that they cannot
-- be added later either.
local EVENTS = { "__gc", "__mode", "__close" }
local FORBIDDEN = { __gc = true, __mode = true, __close = true }
local guards = real_setmetatable({}, { __mode = "k" }) -- table -> its guard
local owns = real_setmetatable({}, { __mode = "k" }) -- guard -> { meta = what the author gave }

local function forbid(key)
  error(key .. " is not offered: when it acts differs from run to run", 3)
end

function rawset(t, key, value)
  if FORBIDDEN[key] and guards[t] then forbid(key) end
  return real_rawset(t, key, value)
end

local function refresh(guard, own)
  for key in real_next, guard do real_rawset(guard, key, nil) end
  if own.meta then
    for key, value in real_next, own.meta do real_rawset(guard, key, value) end
    -- These are often set after the table is in use.
    guard.__index = function(t, key)
      local index = rawget(own.meta, "__index")
      if type(index) == "function" then return (index(t, key)) end
      if index ~= nil then return index[key] end
    end
    guard.__call = function(t, ...)
      local call = rawget(own.meta, "__call")
      if call == nil then error("attempt to call a table value", 2) end
      return call(t, ...)
    end
    guard.__metatable = nil
  end
  guard.__newindex = function(t, key, value)
    if FORBIDDEN[key] then
      error(key .. " is not offered: when it acts differs from run to run", 2)
    end
    local new = own.meta and rawget(own.meta, "__newindex")
    if new == nil then
      real_rawset(t, key, value)
    elseif type(new) == "function" then
      new(t, key, value)
    else
      new[key] = value
    end
  end
end

function getmetatable(value)
  if type(value) == "table" then
    local guard = guards[value]
    if guard then
      local meta = owns[guard].meta
      if meta == nil then return nil end
      local shown = rawget(meta, "__metatable")
      if shown == nil then return meta end
      return shown
    end
  end
  return real_getmetatable(value)
end
local getmetatable = getmetatable

function setmetatable(t, meta)
  if type(t) ~= "table" then wrong(1, "setmetatable", "table", t) end
  if meta ~= nil and type(meta) ~= "table" then wrong(2, "setmetatable", "nil or table", meta) end
  if meta then
    for i = 1, 3 do
      local key = EVENTS[i]
      if rawget(meta, key) ~= nil then error(key .. " is not offered: when it acts differs from run to run", 2) end
    end
    if not guards[meta] and metatable_of(meta) ~= Traced then
      local guard, own = {}, { meta = metatable_of(meta) }
      guards[meta], owns[guard] = guard, own
      refresh(guard, own)
      set_metatable(meta, guard)
    end
  end
  local guard = guards[t]
  if not guard then return real_setmetatable(t, meta) end
  local own = owns[guard]
  if own.meta and rawget(own.meta, "__metatable") ~= nil then error("cannot change a protected metatable", 2) end
  own.meta = meta
  refresh(guard, own)
  return t
end

----------------------------------------------------------------------------------------------------------------- determinism

function tostring(...)
  local value = ...
  local kind = type(value)
  if kind == "table" then
    local meta = metatable_of(value)
    local f = meta and rawget(meta, "__tostring")
    if f == nil then return kind end
    local text = f(value)
    if type(text) ~= "string" then error("'__tostring' must return a string", 2) end
    return text
  end
  if kind == "function" or kind == "thread" then return kind end
  if select("#", ...) == 0 then wrong(1, "tostring", "value", nil) end
  return real_tostring(value)
end
local tostring = tostring

local function ordered(t, level)
  local keys, odd = native_keys(t)
  if odd then error("a table with a " .. odd .. " as a key has no order: use texts or numbers as keys", level + 1) end
  return keys
end

function pairs(t)
  if type(t) ~= "table" then wrong(1, "pairs", "table", t) end
  local meta = metatable_of(t)
  local own = meta and rawget(meta, "__pairs")
  if own ~= nil then
    local f, s, c = own(t)
    return f, s, c
  end
  local keys, i = ordered(t, 2), 0
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
  if type(t) ~= "table" then wrong(1, "next", "table", t) end
  if key ~= nil then error("next(t, key) is not offered, its order differs from run to run: use pairs(t)", 2) end
  local first = ordered(t, 2)[1]
  if first == nil then return nil end
  return first, rawget(t, first)
end

math.random, math.randomseed = native.random, nil

-- No C function may loop over a length that a metamethod made up: these are Lua, whose instructions are counted.
function table.insert(t, ...)
  if type(t) ~= "table" then wrong(1, "insert", "table", t) end
  local n, count = rawlen(t), select("#", ...)
  if count == 1 then
    real_rawset(t, n + 1, (...))
  elseif count == 2 then
    local at, value = ...
    at = integer(at, 2, "insert")
    if at < 1 or at > n + 1 then error("bad argument #2 to 'insert' (position out of bounds)", 2) end
    for i = n, at, -1 do real_rawset(t, i + 1, rawget(t, i)) end
    real_rawset(t, at, value)
  else
    error("wrong number of arguments to 'insert'", 2)
  end
end

local function remove(t, at)
  if type(t) ~= "table" then wrong(1, "remove", "table", t) end
  local n = rawlen(t)
  at = integer(at, 2, "remove", n)
  if n + 1 ~= at and (at < 1 or at > n + 1) and not (n == 0 and at == 0) then
    error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  local removed = rawget(t, at)
  for i = at, n do real_rawset(t, i, rawget(t, i + 1)) end
  if at == n + 1 or n == 0 then real_rawset(t, at, nil) end
  return removed
end
table.remove = remove

function table.move(from, first, last, to, into)
  if type(from) ~= "table" then wrong(1, "move", "table", from) end
  first, last, to = integer(first, 2, "move"), integer(last, 3, "move"), integer(to, 4, "move")
  into = into == nil and from or into
  if type(into) ~= "table" then wrong(5, "move", "table", into) end
  if last >= first then
    if to > last or to <= first or into ~= from then
      for i = 0, last - first do into[to + i] = from[first + i] end
    else
      for i = last - first, 0, -1 do into[to + i] = from[first + i] end
    end
  end
  return into
end

-- The values of list[first..last], read here, so that its metamethods are not run inside a C function.
local function values(list, first, last, what)
  if type(list) ~= "table" then
    error("bad argument #1 to '" .. what .. "' (table expected, got " .. type(list) .. ")", 3)
  end
  first, last = integer(first, 2, what, 1), integer(last, 3, what, rawlen(list))
  if first <= last and (last - first < 0 or last - first >= 1000000) then
    error("table." .. what .. " over more than a million values", 3)
  end
  if real_getmetatable(list) == nil then return list, first, last end
  local copy, n = {}, 0
  for i = first, last do
    n = n + 1
    copy[n] = list[i]
  end
  return copy, 1, n
end

function table.concat(list, separator, first, last)
  separator = separator == nil and "" or separator
  if type(separator) ~= "string" and type(separator) ~= "number" then wrong(2, "concat", "string", separator) end
  list, first, last = values(list, first, last, "concat")
  for i = first, last do
    local kind = type(list[i])
    if kind ~= "string" and kind ~= "number" then
      error("invalid value (at index " .. real_tostring(i) .. ") in table for 'concat'", 2)
    end
  end
  return real_concat(list, separator, first, last)
end

function table.unpack(list, first, last)
  list, first, last = values(list, first, last, "unpack")
  if last - first >= 200000 then error("too many results to unpack", 2) end
  return real_unpack(list, first, last)
end

local function ascending(a, b) return a < b end

-- Stable, so that equal things keep their order in every process; an order that contradicts itself still ends.
function table.sort(list, less)
  if type(list) ~= "table" then wrong(1, "sort", "table", list) end
  if less ~= nil and type(less) ~= "function" then wrong(2, "sort", "function", less) end
  less = less or ascending
  local n, width = rawlen(list), 1
  local from, to = {}, {}
  for i = 1, n do from[i] = list[i] end
  while width < n do
    local i = 1
    while i <= n do
      local left, middle = i, i + width
      local stop, at = i + 2 * width, i
      if middle > n + 1 then middle = n + 1 end
      if stop > n + 1 then stop = n + 1 end
      local right = middle
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
  for i = 1, n do list[i] = from[i] end
end

return {
  Traced = Traced, traced = traced, integer = integer, remove = remove, pairs = pairs,
  real_xpcall = real_xpcall, real_setmetatable = real_setmetatable, real_unpack = real_unpack, real_tostring = real_tostring,
  real_concat = real_concat,
}
