-- The demo's project, complete. The file's name is the project's name: `phased start shop` presses its button.
-- A real one names real hosts and a repository behind https or ssh; nothing else would be different.

-- Who is told of bad news. This one runs a program that keeps the message where the demo looks for it.
local announce = require "alerts.command" { argv = { "sh", "@ANNOUNCE@" } }

local repository = "file://@REPOSITORY@"

return phased.project {
  source = { git = repository, branch = "main" },

  -- On this machine: a fresh checkout, stages in order. The first failure ends the run, and no host is touched.
  test = {
    { "unit", run = function(run) run:sh "sh tests/run.sh" end },
  },

  -- On the hosts, only if every test passed.
  environments = {
    {
      "production",
      hosts = {
@HOSTS@
      },
      ssh = { user = "@USER@", key = phased.secret "deploy_key", known_hosts = "@KNOWN_HOSTS@" },

      -- One host first, then the others, each step watched for a while. When something is wrong, all go back by themselves.
      rollout = { canary = 1, waves = { "100%" }, max_parallel = 2, bake_time = "3s", on_failure = "rollback" },

      -- On each host: exactly the commit that was tested. Values travel as environment variables, never inside the text.
      deploy = function(host)
        host:sh {
          [[
            cd "$HOME"
            [ -d shop/.git ] || git clone --quiet --no-checkout "$REPOSITORY" shop
            cd shop
            git fetch --quiet origin
            git checkout --quiet --detach "$PHASED_REVISION"
            git log -1 --format='%h %s is checked out'
          ]],
          env = { REPOSITORY = repository },
        }
      end,

      -- The host's own port 8080, asked through its SSH session: well for a second without a break, within five.
      health = { http = ":8080/healthz", min_healthy_time = "1s", healthy_deadline = "5s", interval = "300ms" },
    },
  },

  notify = announce,
}
