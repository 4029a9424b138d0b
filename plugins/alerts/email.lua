-- Messages by mail.
--
--   notify = require "alerts.email" {
--     host = "smtp.example.com", user = "phased", password = phased.secret "smtp_password",
--     from = "phased <phased@example.com>", to = { "ops@example.com" },
--   }

-- One line of a header: a commit's message may hold anything.
local function line(text)
  return (tostring(text):gsub("%c+", " "))
end

local function body(message)
  local lines = { line(message.title), "" }
  local function add(label, value)
    if value and value ~= "" then
      lines[#lines + 1] = ("%-13s%s"):format(label, line(value))
    end
  end
  add("Why", message.cause and message.cause.message)
  add("Project", message.project)
  add("Stage", message.stage)
  add("Environment", message.environment)
  add("Host", message.host)
  add("Commit", message.revision)
  add("Author", message.author)
  add("Run", message.run)
  if message.text and message.text ~= "" then
    lines[#lines + 1] = ""
    lines[#lines + 1] = message.text
  end
  if message.output and message.output ~= "" then
    lines[#lines + 1] = ""
    lines[#lines + 1] = "The last lines of output:"
    lines[#lines + 1] = ""
    lines[#lines + 1] = (("\n" .. message.output):gsub("\n", "\n    "):sub(2))
  end
  if message.command then
    lines[#lines + 1] = ""
    lines[#lines + 1] = "To look further: " .. line(message.command)
  end
  return table.concat(lines, "\n") .. "\n"
end

return phased.alert {
  name = "email",
  options = {
    host = { "text", required = true, doc = "The relay." },
    port = { "integer", doc = "Its port: 587, or 465 with tls = \"implicit\"." },
    tls = { "text", values = { "starttls", "implicit", "none" }, default = "starttls", doc = "How the connection is protected." },
    user = { "text", doc = "The login; with password." },
    password = { "secret", doc = "The password; with user." },
    from = { "text", required = true, doc = "Who sends it." },
    to = { "list", required = true, doc = "Who gets it." },
    timeout = { "duration", default = "30s", doc = "The limit of the whole exchange." },
  },
  send = function(options, message)
    phased.smtp {
      host = options.host,
      port = options.port or (options.tls == "implicit" and 465 or options.tls == "none" and 25 or 587),
      tls = options.tls,
      user = options.user,
      password = options.password,
      from = options.from,
      to = options.to,
      subject = "[phased] " .. line(message.title),
      body = body(message),
      timeout = options.timeout,
    }
  end,
}
