//! Ways out of the box: none leads out.

use std::rc::Rc;

use super::*;

/// What `text` comes to: its value, or its error.
fn tried(text: &str) -> Result<String, String> {
    let limits = Limits { memory: 32 << 20, instructions: 1_000_000, slice: Duration::from_secs(5) };
    let resolver: Resolver = Box::new(|name| Err(format!("module {name:?} is not there")));
    let sandbox = Sandbox::for_call(&limits, resolver, 1, Rc::new(Loading)).unwrap();
    let text = format!(
        "local function get(n) local ok, v = pcall(function() return _ENV[n] end) return ok and v or nil end\n{text}"
    );
    match sandbox.evaluate(&Source::new("x.lua".to_owned(), text.clone())) {
        Ok(value) => Ok(value.to_string().unwrap_or_default()),
        Err(error) => Err(words(&error)),
    }
}

#[test]
fn nothing_leads_out() {
    // Each returns something true if it got out.
    for escape in [
        "return get 'os' or get 'io' or get 'debug' or get 'package' or get 'coroutine'",
        "return get 'load' or get 'loadstring' or get 'loadfile' or get 'dofile' or get 'collectgarbage'",
        "return get 'print' or get 'warn' or get '_G' or get 'module' or get 'setfenv' or get 'getfenv' or get 'newproxy'",
        "return rawget(_ENV, 'os') or rawget(_ENV, 'io') or rawget(_ENV, 'debug') or rawget(_ENV, 'load') or rawget(_ENV, 'coroutine')",
        "return string.dump",
        "return string.pack or string.unpack or string.packsize",
        "return math.randomseed",
        "return ('').dump",
        "return pcall(function() return ('').dump(error) end)",
        "return getmetatable('')",
        "return getmetatable('').__index",
        "return pcall(setmetatable, '', {})",
        "return pcall(rawset, getmetatable(''), '__index', 1)",
        "return getmetatable(_ENV)",
        "return pcall(setmetatable, _ENV, {})",
        "return pcall(setmetatable, _ENV, nil)",
        "x = 1 return true",
        "_ENV.x = 1 return true",
        "return (pcall(require, 'os')) or (pcall(require, 'io')) or (pcall(require, 'debug')) or (pcall(require, 'coroutine'))",
        "return (pcall(require, '../../etc/passwd')) or (pcall(require, '/etc/passwd')) or (pcall(require, '')) or (pcall(require, {}))",
        "return (pcall(require, 'projects/x')) or (pcall(require, 'a\\0b')) or (pcall(require, 'x.so')) or (pcall(require))",
        "return pcall(require, setmetatable({}, { __tostring = function() return 'os' end }))",
        "return pcall(require.loaders)",
        "local e = _ENV local _ENV = setmetatable({}, { __index = e }) return rawget(e, 'os')",
        "local function f() local _ENV = { e = _ENV } return e.os end return (pcall(f))",
        "return getmetatable(phased.secret 'k')",
        "return pcall(function() return phased.secret('k').name end)",
        "return pcall(function() return phased.secret('k')['name'] end)",
        "return pcall(function() return #phased.secret 'k' end)",
        "return pcall(function() return phased.secret('k')() end)",
        "return pcall(function() return 'x' .. phased.secret 'k' end)",
        "return pcall(function() return phased.secret 'k' .. 'x' end)",
        "return pcall(tostring, phased.secret 'k')",
        "return pcall(string.format, '%s', phased.secret 'k')",
        "return pcall(string.format, '%q', phased.secret 'k')",
        "return pcall(table.concat, { phased.secret 'k' })",
        "return pcall(function() return phased.secret 'k' + 1 end)",
        "return pcall(function() return phased.secret 'k' < phased.secret 'l' end)",
        "return pcall(function() phased.secret('k').name = 'l' end)",
        "return pcall(setmetatable, phased.secret 'k', {})",
        "return pcall(rawget, phased.secret 'k', 'name')",
        "return pcall(rawlen, phased.secret 'k')",
        "return pcall(pairs, phased.secret 'k')",
        "return pcall(next, phased.secret 'k')",
        "return pcall(function() return phased.secret('k').__gc end)",
        "return pcall(function() return phased.secret('k').__name end)",
        "local b = phased.alert { name = 'a', send = error } {} return getmetatable(b)",
        "local b = phased.alert { name = 'a', send = error } {} return pcall(function() return b.options end)",
        "local b = phased.alert { name = 'a', send = error } {} return pcall(function() return b.__gc end)",
        "return getmetatable(phased.project {})",
        "return pcall(setmetatable, {}, { __gc = error })",
        "return pcall(setmetatable, {}, { __gc = true })",
        "return pcall(setmetatable, {}, { __mode = 'k' })",
        "return pcall(setmetatable, {}, { __mode = 'v' })",
        "return pcall(setmetatable, {}, { __close = error })",
        "local m = {} setmetatable({}, m) return pcall(function() m.__mode = 'k' end)",
        "local m = {} setmetatable({}, m) return pcall(function() m.__gc = error end)",
        "local m = {} setmetatable({}, m) return pcall(function() m.__close = error end)",
        "local m = {} setmetatable({}, m) return pcall(rawset, m, '__mode', 'k')",
        "local m = {} setmetatable({}, m) setmetatable(m, nil) return pcall(function() m.__close = error end)",
        "local m = {} setmetatable({}, m) setmetatable(m, {}) return pcall(function() m['__' .. 'close'] = error end)",
        "local m = {} setmetatable({}, m) setmetatable(m, { __newindex = rawset }) return pcall(function() m.__mode = 'k' end)",
        "local m = setmetatable({}, { __newindex = function(t, k, v) rawset(t, k, v) end }) setmetatable({}, m) return pcall(function() m.__mode = 'k' end)",
        "local m = {} setmetatable({}, m) local g = getmetatable(m) return g",
        "local m = {} setmetatable({}, m) for k, v in pairs(m) do return k end",
        "local m = {} setmetatable(m, m) return pcall(function() m.__mode = 'k' end)",
        "local m = {} setmetatable({}, m) table.move({ 'k' }, 1, 1, 1, m) return m.__mode",
        "local x <close> = setmetatable({}, {}) return true",
        "for _ in function() end, nil, nil, setmetatable({}, {}) do end return true",
        "return pcall(string.format, '%p', {})",
        "return pcall(string.format, '%5p', {})",
        "return pcall(string.format, '%-5.3p', 'x')",
        "return pcall(string.format, '%%%p', {})",
        "return tostring({}):find '0x' or tostring(error):find '0x' or tostring(phased):find '0x'",
        "return ('%s%s'):format({}, error):find '0x'",
        "return tostring(setmetatable({}, { __name = 'n' })):find '0x'",
        "return tostring(phased.alert { name = 'a', send = error }):find '0x'",
        "return tostring(phased.alert { name = 'a', send = error } {}):find '0x'",
        "return tostring(phased.project {}):find '0x'",
        "local _, e = pcall(string.rep) return type(e) ~= 'string'",
        "local _, e = pcall(string.find) return type(e) ~= 'string' or e:find '0x'",
        "local _, e = pcall(phased.secret) return type(e) ~= 'string' or e:find '0x'",
        "local _, e = pcall(require, 'x') return type(e) ~= 'string' or e:find 'prelude' or e:find 'stack traceback'",
        "local _, e = pcall(table.sort, { {}, {} }) return type(e) ~= 'string' or e:find 'prelude'",
        "local got xpcall(string.find, function(e) got = e end) return type(got) ~= 'string'",
        "local _, e = xpcall(error, function(e) error(e) end, {}) return type(e) == 'userdata' or type(e) == 'thread'",
        "local _, e = pcall(error, setmetatable({}, { __tostring = function() return '' end })) return type(e) ~= 'table'",
        "local t = {} local _, e = pcall(error, t) return e ~= t",
        "local x = 0 pcall(function() while true do x = x + 1 end end) return true",
        "local ok = pcall(function() local t = {} while true do t[#t + 1] = ('x'):rep(1000) .. #t end end) return true",
        "for _, f in pairs(phased) do if type(f) == 'function' then pcall(f, _ENV, _ENV) end end return rawget(_ENV, 'os')",
        "return pcall(select(2, pcall(error, error)), 'x') == true",
        "return (pcall(pairs, { [{}] = 1 })) or (pcall(pairs, { [error] = 1 })) or (pcall(next, { [phased.secret 'k'] = 1 }))",
        "return (pcall(next, { 1 }, 1))",
        "return (pcall(('x').rep, 'x', 1e10)) or (pcall(('x').rep, 'x', math.huge))",
        "return ('\\27Lua'):len() ~= 4",
        "return utf8.char(0x7fffffff) == nil",
        "rawset(_ENV, 'proejct', 1) local _, e = pcall(function() return _ENV.project end) return e:find 'did you mean'",
    ] {
        match tried(escape) {
            Err(_) => {}
            Ok(value) => assert!(["nil", "false", ""].contains(&value.as_str()), "{escape}: {value}"),
        }
    }
}

#[test]
fn only_text_is_loaded() {
    let lua = Lua::new();
    let code = lua.load("return 1").into_function().unwrap().dump(false);
    let limits = Limits::default();
    let bytes = String::from_utf8_lossy(&code).into_owned();
    let resolver: Resolver = Box::new(move |_| Ok(Source::new("b.lua".to_owned(), bytes.clone())));
    let sandbox = Sandbox::for_call(&limits, resolver, 1, Rc::new(Loading)).unwrap();
    assert!(sandbox.evaluate(&Source::new("x.lua".to_owned(), "return require 'b'".to_owned())).is_err());
    assert!(sandbox.evaluate(&Source::new("x.lua".to_owned(), "\u{1b}Lua".to_owned())).is_err());
}

/// Not a test of speed, but what a VM costs is worth seeing: `cargo test --release -- --ignored --nocapture vms_are_cheap`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)]
fn vms_are_cheap() {
    let began = std::time::Instant::now();
    for _ in 0..200 {
        let resolver: Resolver = Box::new(|_| Err(String::new()));
        drop(Sandbox::for_call(&Limits::default(), resolver, 1, Rc::new(Loading)).unwrap());
    }
    let resolver: Resolver = Box::new(|_| Err(String::new()));
    let one = Sandbox::for_call(&Limits::default(), resolver, 1, Rc::new(Loading)).unwrap();
    println!("a VM: {:?}, {} KiB", began.elapsed() / 200, one.lua().used_memory() / 1024);
}
