-- Runs a program of your own for each message, as the project's own user, the message as JSON on its standard input.
--
--   notify = require "alerts.command" { argv = { "/usr/local/bin/page", "--team", "shop" } }
--
-- A program that fails is run again later.

return phased.alert {
  name = "command",
  options = {
    argv = { "list", required = true, doc = "The program and its arguments; no shell." },
    env = { "map", doc = "Further environment variables." },
    timeout = { "duration", default = "1m", doc = "The limit of one run." },
  },
  send = function(options, message)
    phased.exec { argv = options.argv, env = options.env, stdin = phased.json.encode(message), timeout = options.timeout }
  end,
}
