-- The file of a server of production: its own rules. It deploys here, and only when a signal asks for it.
return phased.project {
  source = { git = "file://@REPOSITORY@", branch = "main" },

  environments = {
    {
      "production",
      when = "signal",
      hosts = { phased.localhost },

      deploy = function(host)
        host:sh {
          [[
            cd "$SERVES"
            git -C "$REPOSITORY" show "$PHASED_REVISION:app.sh" >app.sh.new
            mv app.sh.new app.sh
            echo "$PHASED_REVISION" >revision
            echo "$PHASED_REVISION" >>deployed
          ]],
          env = { SERVES = "@ROOT@/serves", REPOSITORY = "@REPOSITORY@" },
        }
      end,

      -- What a visitor would see: the shop answers.
      health = {
        command = 'HOST_NAME=@NAME@ sh "@ROOT@/serves/app.sh"',
        min_healthy_time = "300ms", healthy_deadline = "3s", interval = "100ms",
      },
    },
  },

  notify = require "alerts.log" {},
}
