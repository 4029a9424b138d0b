//! The same in every VM, every time.

use super::*;

#[test]
fn twenty_vms_do_the_same() {
    let body = r#"
      local t = {}
      for i = 1, 200 do t["key" .. (i * 7919 % 1000)] = i t[i * 31 % 97] = i end
      t[true], t[false], t[1.5], t[-3] = 1, 2, 3, 4
      for k, v in pairs(t) do run:log(tostring(k) .. "=" .. tostring(v)) end
      run:log(tostring(next(t)))
      run:log(math.random() .. " " .. math.random(6) .. " " .. math.random(-5, 5))
      run:log(tostring({}) .. tostring(print_me or error) .. tostring(run) .. ("%s %s"):format({}, function() end))
      run:log(tostring(phased.alert { name = "x", send = error }) .. tostring(setmetatable({}, { __name = "n" })))
      run:log(phased.json.encode(t.none or { z = 1, a = { 1, 2 }, m = "x" }))
      run:parallel { q = function() run:log "q" end, b = function() run:log "b" end, z1 = function() run:log "z" end }
      return t.key919"#
        .replace("print_me or ", "");
    let first = run(&body);
    assert!(matches!(first.1, Turn::Return(_)), "{:?}", first.1);
    assert!(first.0.iter().all(|line| !line.contains("0x")), "{:?}", first.0);
    for _ in 0..19 {
        assert_eq!(run(&body), first);
    }
    // Another call of the same run draws other numbers.
    let mut other = Driving::new("return { math.random(1000000), math.random(1000000) }");
    let here = other.start();
    other.key = CallKey::stage("other", "run");
    assert_ne!(here, other.start());
}

#[test]
fn order_is_numbers_texts_booleans() {
    let body = r#"
      local t = { "a", "b", [10] = 1, [-1] = 1, [2.5] = 1, b = 1, a = 1, B = 1, [""] = 1, [true] = 1, [false] = 1 }
      local keys = {}
      for k in pairs(t) do keys[#keys + 1] = tostring(k) end
      return table.concat(keys, " ")"#;
    assert_eq!(returned(body), json!("-1 1 2 2.5 10  B a b false true"));
    assert_eq!(
        returned(
            "local n = 0 local t = { a = 1, b = 2 } for k in pairs(t) do t[k] = nil n = n + 1 end return { n, next(t) == nil }"
        ),
        json!([2, true])
    );
    assert_eq!(returned("return { next {} == nil, next { 5 }, (next { a = 1 }) }"), json!([true, 1, "a"]));
    assert!(raised("for k in next, { a = 1 } do end").message.contains("use pairs(t)"));
}

#[test]
fn sort_is_stable_and_ends_under_any_order() {
    let body = r#"
      local t = {}
      for i = 1, 100 do t[i] = { k = i % 7, n = i } end
      table.sort(t, function(a, b) return a.k < b.k end)
      for i = 2, 100 do
        if t[i - 1].k > t[i].k or t[i - 1].k == t[i].k and t[i - 1].n > t[i].n then return i end
      end
      local u = { 5, 3, 1, 4, 2 }
      table.sort(u)
      table.sort({ 1, 2, 3, 4, 5, 6, 7 }, function() return true end)
      table.sort({ 1, 2, 3, 4, 5, 6, 7 }, function() return math.random(2) == 1 end)
      table.sort {}
      local w = { 3, 1, 2 }
      pcall(table.sort, w, error)
      return table.concat(u, " ") .. " " .. table.concat(w, " ")"#;
    assert_eq!(returned(body), json!("1 2 3 4 5 3 1 2"));
}

#[test]
fn a_script_that_overwrites_everything_breaks_only_itself() {
    let body = r#"
      for _, t in ipairs { table, string, math, utf8 } do
        for k in pairs(t) do t[k] = nil end
      end
      rawset, rawget, rawlen, select, tonumber, ipairs, getmetatable, setmetatable, next, tostring, type, error = nil
      pairs, pcall, xpcall, require, assert = nil
      local ok = run:parallel { a = function() return run:sh("a").stdout end, b = function() return run:sh("b").stdout end }
      run:log "still here"
      return ok.a .. ok.b"#;
    let (asked, end) = run(body);
    assert_eq!((asked.len(), end), (3, Turn::Return(json!("ab"))));
}

#[test]
fn strings_and_tables_answer_as_lua_does() {
    // Each is true in plain Lua as well.
    let checks = include_str!("same.lua");
    let plain = mlua::Lua::new();
    plain.load(checks).set_name("@same.lua").exec().unwrap();
    let (_, end) = run(checks);
    assert_eq!(end, Turn::Return(Json::Null));
}
