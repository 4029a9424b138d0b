-- A plain Node service on a few servers, complete. Copy it to plugins/projects/shop.lua: the file's name is the project's name.
-- `phased check` says whether all is well, `phased start shop` presses the button. Mind that the daemon presses it by itself when it
-- sees a head of the branch for the first time, also right after its start: begin with one test machine in `hosts`.

-- Who is told when something goes wrong. alerts.log writes to the daemon's log only; put alerts.slack, alerts.email,
-- alerts.webhook or alerts.command beside it, so that bad news reaches somebody:
--   local slack = require "alerts.slack" { url = phased.secret "slack_url" }      -- then notify = { log, slack }
local log = require "alerts.log" {}

return phased.project {
  -- Where commits come from. A secret is a file of that name in the secrets directory; its value never enters this file.
  source = {
    git = "https://github.com/acme/shop.git",
    branch = "main",
    poll = "5m", -- also asked for on its own, in case a webhook is lost
    webhook = phased.secret "shop_webhook", -- POST /hooks/github/shop, signed with this
  },

  -- A newer push supersedes those that still wait. "all": every push gets a run.
  queue = "latest",

  -- Continuous integration, on this server: one fresh checkout for each run, stages in order, the first failure ends the run
  -- and no host is touched.
  test = {
    {
      "unit",
      run = function(run)
        run:sh "npm install"
        run:sh { "npm test", timeout = "10m" }
      end,
    },
    {
      "integration",
      setup = function(run)
        run:sh "npm run --if-present test:populate" -- enough data to run every test
      end,
      run = function(run)
        run:sh { "npm run --if-present test:integration", timeout = "20m", env = { NODE_ENV = "test" } }
      end,
      cleanup = function(run) -- always called: pass, fail, stop or crash
        run:sh "npm run --if-present test:destroy"
      end,
    },
  },

  -- Continuous deployment: environments in order, each only if the one before is good.
  environments = {
    {
      "production",
      -- Addresses, host tables, or a discovery: require "discovery.file" { "/etc/phased/hosts.json" }
      hosts = {
        "web1.example.com",
        "web2.example.com",
        { id = "web3", address = "10.0.0.3", labels = { rack = "b" } },
      },
      ssh = { user = "deploy", key = phased.secret "deploy_key", known_hosts = "/etc/phased/known_hosts" },
      rollout = { max_parallel = 1, max_failures = 0 },

      -- On each host: exactly the commit that was tested, whatever the branch says by now.
      deploy = function(host)
        host:sh {
          [[
            cd /srv/shop
            git fetch --quiet origin
            git checkout --quiet --detach "$PHASED_REVISION"
            npm install
          ]],
          timeout = "5m",
          retries = 1, -- the registry may be slow for a moment
        }
        host:service("shop"):restart() -- sudo -n systemctl restart shop.service: one line of sudoers is enough
      end,

      -- A host counts as deployed when it has answered well for 10 s without a break; not within 2 m: it has failed.
      health = { http = ":8080/healthz", min_healthy_time = "10s", healthy_deadline = "2m" },

      -- Testing in production, once all hosts are healthy.
      verify = function(run)
        run:http { "https://shop.example.com/healthz", timeout = "10s", retries = 3 }
      end,
    },
  },

  notify = log,
}
