-- The integration server's file: it tests, and sends signals. It has no shell on any server of production.
return phased.project {
  source = { git = "file://@REPOSITORY@", branch = "main" },

  test = {
    { "unit", run = function(run) run:sh "sh tests/run.sh" end },
  },

  environments = {
    {
      "production",
      transport = "signal",
      -- Our key signs; theirs are known by the ids of their hosts.
      signal = { key = phased.secret "signals", receivers = "@ROOT@/receivers" },
      hosts = {
@HOSTS@
      },
      -- Waves, budgets and rollback are as over SSH.
      rollout = { canary = 1, waves = { "100%" }, max_parallel = 2, bake_time = "3s", max_unreachable = 1 },
    },
  },

  notify = require "alerts.log" {},
}
