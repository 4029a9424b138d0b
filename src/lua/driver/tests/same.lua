local function same(a, b) if a ~= b then error(tostring(a) .. " is not " .. tostring(b), 2) end end
local function all(...) local t = {} for i = 1, select("#", ...) do t[i] = tostring((select(i, ...))) end return table.concat(t, ",") end
same(all(("hello world"):gsub("o", "0")), "hell0 w0rld,2")
same(all(("hello world"):gsub("o", "0", 1)), "hell0 world,1")
same(all(("hello"):gsub("", "-")), "-h-e-l-l-o-,6")
same(all(("abc"):gsub("%w", "%0%0")), "aabbcc,3")
same(all(("abc def"):gsub("(%w+) (%w+)", "%2 %1")), "def abc,1")
same(all(("abc"):gsub("b*", "x")), "xaxcx,3")
same(all(("$name is $x"):gsub("%$(%w+)", { name = "Lua" })), "Lua is $x,2")
same(all(("abc"):gsub("(b)()", function(a, b) return a .. b end)), "ab3c,1")
same(all(("aaa"):gsub("^a", "b")), "baa,1")
same(all(("x"):gsub("x", "%%")), "%,1")
same(all(pcall(string.gsub, "x", "x", "%2")), all(pcall(string.gsub, "x", "x", "%2")))
same(select(2, ("abc"):gsub(".", "")), 3)
local words = {}
for k, v in ("a=1, b=2"):gmatch "(%w+)=(%w+)" do words[#words + 1] = k .. v end
same(table.concat(words, " "), "a1 b2")
words = {}
for w in ("one two"):gmatch "%a*" do words[#words + 1] = "<" .. w .. ">" end
same(table.concat(words), "<one><two>")
words = {}
for p in ("abc"):gmatch "()" do words[#words + 1] = p end
same(table.concat(words, " "), "1 2 3 4")
for w in ("abc"):gmatch("%a", 3) do same(w, "c") end
for w in ("abc"):gmatch("%a", -1) do same(w, "c") end
for w in ("^a"):gmatch "^a" do same(w, "^a") end
same(all(("abc"):find("b", 1, true)), "2,2")
same(all(("abc"):find("", 10)), "nil")
same(all(("abc"):find("", 4)), "4,3")
same(all(("abc"):find("c", -1)), "3,3")
same(all(("a.b"):find(".", 2, true)), "2,2")
same(all(("key=val"):match "(%w+)=(%w+)"), "key,val")
same(all(("abc"):match("b", 3)), "nil")
same(string.rep("ab", 3, "-"), "ab-ab-ab")
same(string.rep("x", 0) .. string.rep("x", -1), "")
same(("%5.2f|%d|%s|%q"):format(1.5, 3, nil, "x"), " 1.50|3|nil|\"x\"")
same(("100%%p"):format(), "100%p")
local t = { 1, 2, 3 }
table.insert(t, 4) table.insert(t, 1, 0)
same(table.concat(t, " "), "0 1 2 3 4")
same(table.remove(t), 4) same(table.remove(t, 1), 0) same(table.concat(t, " "), "1 2 3")
same(table.remove({}), nil) same(table.remove({}, 0), nil)
same(all(table.unpack({ 1, 2, 3 }, 2)), "2,3")
same(all(table.unpack({ 1, nil, 3 }, 1, 3)), "1,nil,3")
same(table.concat(table.move({ 1, 2, 3 }, 2, 3, 1), " "), "2 3 3")
same(table.concat(table.move({ 1, 2, 3 }, 1, 3, 2), " "), "1 1 2 3")
same(table.concat({ 1, 2.5, "x" }, ", ", 2), "2.5, x")
same(tostring(nil) .. tostring(true) .. tostring(1.0) .. tostring(-0.0), "niltrue1.0-0.0")
same(all(pcall(error, { 1 })):sub(1, 5), "false")
same(select("#", pcall(error)), 2)
same(all(xpcall(function(a) return a end, error, 7)), "true,7")
same(all(xpcall(error, function(e) return e .. "!" end, "x")), "false,x!")
-- Metatables: classes, inheritance, what is set late, what is protected.
local Base = {} Base.__index = Base
function Base.new(class, n) return setmetatable({ n = n }, class) end
function Base:twice() return self.n * 2 end
local Derived = setmetatable({}, { __index = Base, __call = function(class, n) return class:new(n) end }) Derived.__index = Derived
local d = Derived(4)
same(d:twice(), 8) same(getmetatable(d), Derived) same(getmetatable(getmetatable(Derived)), nil)
Derived.__tostring = function(self) return "d" .. self.n end
Derived.__eq = function(a, b) return a.n == b.n end
Derived.__lt = function(a, b) return a.n < b.n end
same(tostring(d), "d4") same(d == Derived(4), true) same(d < Derived(5), true)
function Derived:thrice() return self.n * 3 end
same(d:thrice(), 12)
local meta = {} local late = setmetatable({}, meta)
meta.__index = function(_, k) return k .. "!" end
same(late.x, "x!")
same(getmetatable(setmetatable({}, { __metatable = "no" })), "no")
same(pcall(setmetatable, setmetatable({}, { __metatable = 1 }), {}), false)
setmetatable(meta, { __index = function() return nil end }) same(getmetatable(meta).__index ~= nil, true)
setmetatable(meta, nil) same(getmetatable(meta), nil)
local keys = {} for k in pairs(meta) do keys[#keys + 1] = k end same(#keys, 1)
