-- The project of `phased demo --crash`, complete. Every command puts its beginning and its end down on a list of the machine it runs on,
-- and prints ten lines. Where the daemon is to be killed in the middle of a command, that command waits until the demo lets it go on.

local announce = require "alerts.command" { argv = { "sh", "@ANNOUNCE@" } }

local repository = "file://@REPOSITORY@"

-- A command: its work, between lines that can be counted.
local function counted(name, work)
  local half = function(from, to)
    return "for n in $(seq " .. from .. " " .. to .. "); do echo \"" .. name .. ": line $n of 10\"; done\n"
  end
  local list = function(what) return "echo '" .. name .. " " .. what .. "' >>\"$LIST\"\n" end
  return list "begins" .. half(1, 5) .. work .. "\n" .. half(6, 10) .. list "ends"
end

local wait = 'until [ -e "$LIST.go" ]; do sleep 0.05; done'

return phased.project {
  source = { git = repository, branch = "main" },

  test = {
    { "unit", run = function(run)
        run:sh { counted("tests", "sh tests/run.sh\n" .. wait), env = { LIST = "@ROOT@/commands" } }
      end },
  },

  environments = {
    {
      "production",
      hosts = {
@HOSTS@
      },
      ssh = { user = "@USER@", key = phased.secret "deploy_key", known_hosts = "@KNOWN_HOSTS@" },
      rollout = { canary = 0, bake_time = "0s" },

      deploy = function(host)
        host:sh {
          'LIST="$HOME/commands"\n' .. counted("fetch", [[
            cd "$HOME"
            [ -d shop/.git ] || git clone --quiet --no-checkout "$REPOSITORY" shop
            git -C shop fetch --quiet origin]]),
          env = { REPOSITORY = repository },
        }
        host:sh('LIST="$HOME/commands"\n' .. counted("switch", [[
            git -C "$HOME/shop" checkout --quiet --detach "$PHASED_REVISION"
            ]] .. wait))
      end,

      health = { http = ":8080/healthz", min_healthy_time = "1s", healthy_deadline = "30s" },
    },
  },

  notify = announce,
}
