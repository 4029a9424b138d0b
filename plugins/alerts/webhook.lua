-- Posts messages as JSON to a URL of your own.
--
--   notify = require "alerts.webhook" { "https://ops.example.com/phased", headers = { authorization = phased.secret "ops_token" } }
--
-- The body is the message: event, project, run, state, title, text, release, revision, author, environment, stage, host,
-- cause {code, message}, output, command. An answer outside 200 to 299 is tried again later.

return phased.alert {
  name = "webhook",
  options = {
    url = { "url_or_secret", position = 1, required = true, doc = "Where to; a secret if the URL itself is one." },
    headers = { "map", doc = "Further headers." },
    timeout = { "duration", default = "30s", doc = "The limit of one request." },
  },
  send = function(options, message)
    phased.http { options.url, method = "POST", headers = options.headers, json = message, timeout = options.timeout }
  end,
}
