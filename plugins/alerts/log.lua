-- Writes messages to the daemon's own log: the least of all channels.
--
--   notify = require "alerts.log" {}

return phased.alert {
  name = "log",
  send = function(_, message)
    local parts = { message.title }
    if message.cause then
      parts[#parts + 1] = message.cause.message
    end
    if message.command then
      parts[#parts + 1] = "look further: " .. message.command
    end
    phased.log(table.concat(parts, " | "))
  end,
}
