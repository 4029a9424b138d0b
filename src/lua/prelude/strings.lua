-- Strings: bounded, and without addresses. See box.lua for what may be used in here.

local native, own = ...
local error, type, select, pack, real_tostring = error, type, select, table.pack, own.real_tostring
local tostring, sub, tointeger = tostring, string.sub, math.tointeger
local real_rep, real_format, real_unpack, real_concat = string.rep, string.format, own.real_unpack, own.real_concat
local native_scan, native_expand, has_pointer = native.scan, native.expand, native.has_pointer
local integer = own.integer

local function text(value, n, what)
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "number" then return real_tostring(value) end
  error("bad argument #" .. n .. " to '" .. what .. "' (string expected, got " .. (value == nil and "no value" or kind) .. ")", 3)
end

function string.rep(s, n, separator)
  s, n = text(s, 1, "rep"), integer(n, 2, "rep")
  separator = separator == nil and "" or text(separator, 3, "rep")
  if n > 0 and (#s + #separator) * (n + 0.0) > 16 * 1024 * 1024 then
    error("string.rep would make more than 16 MiB", 2)
  end
  if n > 0 and #s + #separator == 0 then return "" end
  return real_rep(s, n, separator)
end

function string.format(template, ...)
  template = text(template, 1, "format")
  if has_pointer(template) then error("%p is not offered: addresses differ from run to run", 2) end
  local args = pack(...)
  for i = 1, args.n do
    local kind = type(args[i])
    if kind == "table" or kind == "function" or kind == "userdata" then args[i] = tostring(args[i]) end
  end
  return real_format(template, real_unpack(args, 1, args.n))
end

string.find, string.match = native.find, native.match

function string.gmatch(s, pattern, init)
  s, pattern = text(s, 1, "gmatch"), text(pattern, 2, "gmatch")
  local at, last = integer(init, 3, "gmatch", 1), nil
  if at < 0 then at = #s + at + 1 end
  if at < 1 then at = 1 end
  local function following(start, stop, ...)
    if not start then
      at = #s + 2
      return nil
    end
    -- Past the match; an empty one has no character of its own.
    at, last = stop < start and start or stop + 1, stop
    return ...
  end
  return function()
    if at <= #s + 1 then return following(native_scan(s, pattern, at, last)) end
  end
end

-- Callbacks are called from Lua, so a step in one may wait.
function string.gsub(s, pattern, with, limit)
  s, pattern = text(s, 1, "gsub"), text(pattern, 2, "gsub")
  local kind = type(with)
  if kind == "number" then with, kind = real_tostring(with), "string" end
  if kind ~= "string" and kind ~= "table" and kind ~= "function" then
    error("bad argument #3 to 'gsub' (string/function/table expected, got " .. (with == nil and "no value" or kind) .. ")", 2)
  end
  limit = limit ~= nil and integer(limit, 4, "gsub")
  local anchored = sub(pattern, 1, 1) == "^"
  local parts, n, at, last, copied, count = {}, 0, 1, nil, 1, 0
  while at <= #s + 1 and (not limit or count < limit) do
    local found = pack(native_scan(s, pattern, at, last, true))
    local start, stop = found[1], found[2]
    if not start then break end
    count = count + 1
    local whole, value = sub(s, start, stop), nil
    if kind == "function" then
      value = with(real_unpack(found, 3, found.n))
    elseif kind == "table" then
      value = with[found[3]]
    else
      value = native_expand(with, whole, real_unpack(found, 3, found.n))
    end
    if value == nil or value == false then
      value = whole
    elseif type(value) ~= "string" and type(value) ~= "number" then
      error("invalid replacement value (a " .. type(value) .. ")", 2)
    end
    parts[n + 1], parts[n + 2] = sub(s, copied, start - 1), real_tostring(value)
    n = n + 2
    copied, last = stop + 1, stop
    at = stop < start and start or stop + 1
    if anchored then break end
  end
  parts[n + 1] = sub(s, copied)
  return real_concat(parts), count
end

string.dump, string.pack, string.unpack, string.packsize = nil, nil, nil, nil
native.lock_strings()
