-- The hooks of program.rs, in Lua: what the engine promises holds in both.
local function on(host, command) return host:sh(command) end

-- Every host of a wave may have gone.
local function first(wave, command)
  if wave.hosts[1] then on(wave.hosts[1], command) end
end

local function environment(name)
  return { name, hosts = { "h0" }, health = "none",
    prepare = function(host) host:sh { "prepare", retries = 1, backoff = "1s", timeout = "2m" } end,
    before = function(deployment) deployment.hosts[1]:sh "migrate" end,
    before_wave = function(wave) first(wave, "announce") end,
    drain = function(host) on(host, "drain") end,
    deploy = function(host)
      local ok, why = pcall(on, host, "stop")
      if not ok then error(why) end
      host:undo("serve again", function() host:sh "undo" end)
      host:sleep "500ms"
      host:sh "deploy"
    end,
    undrain = function(host) on(host, "undrain") end,
    after_wave = function(wave) first(wave, "look") end,
    verify = function(run)
      run:parallel {
        smoke = function() run:sh "verify" end,
        slow = function() run:sleep "1s" end,
      }
    end,
    rollback_safe = function(release) return not release.message:find "schema", "the schema changed" end,
    after = function(deployment) deployment.hosts[1]:sh "after" end }
end

return phased.project {
  source = { git = "file:///simulated/shop.git", branch = "main" },
  test = { { "unit",
    setup = function(run) run:sh "setup" end,
    run = function(run)
      run:sh "test"
      run:sh "test more"
    end,
    cleanup = function(run) run:sh "cleanup" end } },
  environments = { environment "staging", environment "production" },
}
