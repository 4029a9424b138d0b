//! Code that does not end, or wants everything: it is ended, in time, and catches nothing of it.

use super::*;

/// Small limits, so that all of these take a moment.
fn small() -> Limits {
    Limits { memory: 8 << 20, instructions: 1_000_000, slice: std::time::Duration::from_secs(5) }
}

fn end_of(body: &str, modules: &[(&str, &str)]) -> Turn {
    Driving::of(bundle(&project(body), modules), small()).start()
}

#[test]
fn what_runs_away_is_ended_with_its_limit() {
    for body in [
        "while true do end",
        "repeat until false",
        "::again:: goto again",
        "while true do pcall(function() while true do end end) end",
        "while true do pcall(error) end",
        "while true do xpcall(function() while true do end end, function(e) while true do end end) end",
        "pcall(function() while true do end end) while true do end",
        "local function f() return f() end f()",
        "local function f() pcall(f) return f() end f()",
        "local t = setmetatable({}, { __index = function(t, k) return t[k + 1] end }) while true do pcall(function() return t[1] end) end",
        "local t t = setmetatable({}, { __index = function() while true do end end }) return t.x",
        "local t = setmetatable({}, { __tostring = function() while true do end end }) return tostring(t)",
        "local t = setmetatable({}, { __concat = function() while true do end end }) return t .. 'x'",
        "table.sort({ 1, 2, 3 }, function() while true do end end)",
        "local t = setmetatable({}, { __lt = function() while true do end end }) table.sort { t, t, t }",
        "local t = setmetatable({}, { __eq = function() while true do end end }) return t == setmetatable({}, getmetatable(t))",
        "local t = setmetatable({}, { __len = function() while true do end end }) return #t",
        "local t = setmetatable({}, { __call = function(self) return self() end }) t()",
        "(('x'):rep(100)):gsub('x', function() while true do end end)",
        "for _ in ('x'):rep(10):gmatch 'x' do while true do end end",
        "for _ in pairs(setmetatable({}, { __pairs = function() return function() return 1 end end })) do end",
        "table.move({}, 1, 1 << 60, 2)",
        "table.move(setmetatable({}, { __index = function() return 1 end }), 1, 1 << 60, 1, setmetatable({}, { __newindex = function() end }))",
        "while true do ('x'):rep(1000) end",
        "while true do local _ = ('x'):rep(100000):find('y', 1, true) end",
        "local s = ('a'):rep(200) return s:find('.-.-.-.-.-.-.-.-b')",
        "local s = ('a'):rep(30000) return s:match('.-b')",
        "local s = ('a'):rep(300) return s:gsub('.-.-.-.-.-b', '')",
        "local s = ('a'):rep(300) for w in s:gmatch '.-.-.-.-.-b' do end",
        "local s = ('a'):rep(300) while true do pcall(s.find, s, '.-.-.-.-.-.-b') end",
        "local s = ('a'):rep(100000) return s:find(('a'):rep(50000) .. 'b', 1, true)",
        "local s = ('('):rep(100000) return s:find('%b()')",
        "local t = {} for i = 1, 100000 do t[i] = i end while true do pairs(t) end",
        "local t = {} for i = 1, 100000 do t[i] = i end while true do next(t) end",
        "local s = '[' .. ('1,'):rep(10000) .. '1]' while true do phased.json.decode(s) end",
        "local function f(e) error(e) end while true do xpcall(error, f) end",
    ] {
        match end_of(body, &[]) {
            Turn::Ended { cause, .. } => {
                assert!(
                    ["limit_instructions", "limit_time", "limit_memory"].contains(&cause.code.as_str()),
                    "{body}: {cause:?}"
                );
            }
            Turn::Raised { cause, .. } if cause.message.contains("stack overflow") => {}
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn what_eats_memory_is_ended() {
    for body in [
        "local t = {} while true do t[#t + 1] = {} end",
        "local t = {} for i = 1, 1e9 do t[i] = i end",
        "local s = 'x' while true do s = s .. s end",
        "local s = 'x' while true do pcall(function() s = s .. s end) end",
        "local t = {} while true do pcall(function() t[#t + 1] = ('x'):rep(100000) .. #t end) end",
        "local t = {} while true do local ok = xpcall(function() t[#t + 1] = ('x'):rep(1000000) .. #t end, function() end) end",
        "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1000000) .. i end return table.concat(t)",
        "return (('x'):rep(1000000)):gsub('x', ('y'):rep(1000))",
        "local t = {} while true do t = { t, t, function() return t end } local u = { t } t[4] = u end",
        "local a = {} local function f(...) a[#a + 1] = { ... } return f(1, ...) end f()",
        "local p = {} for i = 1, 1e7 do p['k' .. i] = function() end end run:parallel(p)",
    ] {
        match end_of(body, &[]) {
            Turn::Ended { cause, .. } => {
                assert!(["limit_memory", "limit_instructions"].contains(&cause.code.as_str()), "{body}: {cause:?}")
            }
            Turn::Raised { cause, .. }
                if cause.message.contains("stack overflow") || cause.message.contains("too large") => {}
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn what_is_too_large_is_refused() {
    for (body, said) in [
        ("return ('x'):rep(10 * 1024 * 1024 * 1024)", "string.rep would make more than 16 MiB"),
        ("return ('x'):rep(1 << 62, 'y')", "string.rep would make more than 16 MiB"),
        ("return table.unpack({}, 1, 1 << 40)", "over more than a million values"),
        ("return table.unpack({}, -(1 << 62), 1 << 62)", "over more than a million values"),
        ("return table.unpack({}, math.mininteger, math.maxinteger)", "over more than a million values"),
        ("return table.concat({}, 'x', 1, 1 << 40)", "over more than a million values"),
        (
            "return table.unpack(setmetatable({}, { __len = function() return 1 << 40 end }), 1, 1e7)",
            "over more than a million values",
        ),
        ("return ('%99999d'):format(1)", "invalid conversion"),
    ] {
        let cause = raised(body);
        assert!(cause.message.contains(said), "{body}: {cause:?}");
    }
    let fake = "setmetatable({ 1, 2 }, { __len = function() return 1 << 60 end })";
    assert_eq!(
        returned(&format!("local t = {fake} table.insert(t, 3) return {{ table.unpack(t) }}")),
        json!([1, 2, 3])
    );
    assert_eq!(returned(&format!("return table.concat({fake}, '-')")), json!("1-2"));
    assert_eq!(returned("return ('').rep('', 1 << 60)"), json!(""));
    // Data that is written out doubles at each level; only so much of it is.
    let bomb = "local t = { 1 } for _ = 1, 50 do t = { t, t } end ";
    assert_eq!(
        returned(&format!("{bomb} return select(2, pcall(phased.json.encode, t))"))
            .as_str()
            .map(|s| s.contains("more than")),
        Some(true)
    );
    assert_eq!(Driving::new(&format!("{bomb} return t")).start(), Turn::Return(Json::Null));
    assert!(matches!(
        end_of(&format!("{bomb} run:http {{ 'https://x', json = t }}"), &[]),
        Turn::Raised { .. } | Turn::Ended { .. }
    ));
}

#[test]
fn files_that_do_not_end_are_ended_while_they_are_loaded() {
    for (body, module) in [("require 'm'", "while true do end"), ("pcall(require, 'm')", "for i = 1, 1e12 do end")] {
        let Turn::Ended { cause, .. } = end_of(body, &[("m", module)]) else { panic!("{body}") };
        assert_eq!(cause.code, "limit_instructions");
    }
    for text in [
        "while true do end",
        "pcall(function() while true do end end) return 1",
        "require 'm'",
        "local t = {} while true do t[#t+1] = 'x' .. #t end",
    ] {
        let turn = Driving::of(bundle(text, &[("m", "while true do end")]), small()).start();
        assert!(matches!(&turn, Turn::Ended { cause, .. } if cause.code.starts_with("limit_")), "{text}: {turn:?}");
    }
}

#[test]
fn time_is_counted_by_the_turn() {
    let limits = Limits { slice: std::time::Duration::from_millis(50), instructions: u64::MAX, ..small() };
    let mut driving = Driving::of(bundle(&project("while true do end"), &[]), limits);
    assert!(matches!(driving.start(), Turn::Ended { cause, .. } if cause.code == "limit_time"));
}
