-- plugins/projects/careful.lua: built once, migrated once, rolled out with care, and back by itself.
-- shop.lua beside this file is the plain one; this one shows what else there is. Everything here is explained in docs/rollouts.md.

local slack = require "alerts.slack" { url = phased.secret "slack_url" }
local prometheus = require "probes.prometheus"

-- /srv/shop/{releases/<id>,shared,current}: a release beside the others, switched by one symbolic link, five kept.
local releases = require "deploy.releases"
local app = releases { dir = "/srv/shop", artifact = "app", shared = { "log", "uploads" } }

return phased.project {
  source = {
    git = "https://github.com/acme/shop.git",
    branch = "main",
    poll = "5m",
    webhook = phased.secret "shop_webhook",
  },

  -- Built once. Every environment, every further run and every rollback uses the same bytes; the forge and npm may be down then.
  test = {
    { "build", run = function(run)
        run:sh { "npm ci && npm run build", timeout = "15m" }
        run:artifact { "app", path = ".", exclude = { ".git", "reports" } }
      end },
    { "unit", run = function(run) run:sh { "npm test", reports = "reports/*.xml", timeout = "10m" } end },
  },

  environments = {
    { "production",
      hosts = { "web1.example.com", "web2.example.com", "web3.example.com", "web4.example.com" },
      ssh = { user = "deploy", key = phased.secret "deploy_key", known_hosts = "/etc/phased/known_hosts" },

      -- One host first. Then half of them, then all; each step is watched for five minutes.
      rollout = {
        canary = 1,
        waves = { "50%", "100%" },
        max_parallel = 2,
        bake_time = "5m",
        min_healthy = "50%",
        on_failure = "rollback",
      },

      -- On every host before anything is switched: the release lies there, and nothing serves it yet.
      prepare = app.prepare,

      -- Once: migrations, and only where there are new ones.
      before = function(deployment)
        if deployment.release:changed "db/migrate/**" then
          deployment.hosts[1]:sh {
            'cd "/srv/shop/releases/$PHASED_RELEASE" && bin/migrate up',
            env = { DATABASE_URL = phased.secret "shop/production/database_url" },
            timeout = "20m",
          }
        end
      end,

      drain = function(host) host:sh "touch /srv/shop/shared/drained && sleep 5" end,
      deploy = function(host, release)
        app.activate(host, release)
        host:service("shop"):restart()
      end,
      undrain = function(host) host:sh "rm -f /srv/shop/shared/drained" end,

      -- Well is: it answers, the unit runs without restarting by itself, and it says that it is this release.
      health = {
        http = ":8080/healthz",
        service = "shop",
        version = { http = ":8080/version", json = "revision" },
        min_healthy_time = "10s",
        healthy_deadline = "2m",
      },

      -- After the canary and at the end.
      verify = function(run) run:sh { "npm run smoke -- https://shop.example.com", timeout = "5m" } end,

      -- A schema that changed cannot go back by itself: it halts, and says so in the plan beforehand.
      rollback_safe = function(release) return not release:changed "db/migrate/**", "the schema changed" end,

      alarms = {
        { "error rate",
          cause = prometheus {
            url = "http://prometheus.example.com:9090",
            query = 'sum(rate(http_requests_total{job="shop",code=~"5.."}[1m])) / sum(rate(http_requests_total{job="shop"}[1m]))',
            above = 0.01,
            lasting = "2m",
          },
          alert = slack,
          action = "rollback" },
      },

      -- Nothing new from Friday afternoon on. Rollbacks go.
      freeze = { { from = "fri 16:00", to = "mon 08:00", zone = "Europe/Berlin", reason = "weekend" } },
    },
  },

  notify = slack,
}
