-- Messages to a Slack channel, by an incoming webhook.
--
--   notify = require "alerts.slack" { url = phased.secret "slack_url" }

-- Slack reads these three itself; everything in a message may come from a commit.
local function plain(text)
  return (tostring(text):gsub("[&<>]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }))
end

-- As Slack shows a block of code: no fence of the text's own may end it.
local function code(text)
  return "```" .. plain(text):gsub("```", "'''") .. "```"
end

-- Slack cuts long texts itself, and loses the end, which matters most: keep the last whole lines.
local function tail(text, most)
  if #text <= most then
    return text
  end
  local kept = text:sub(-most)
  return "…\n" .. kept:sub((kept:find("\n", 1, true) or 0) + 1)
end

local function text(message)
  local good = message.event == "succeeded" or message.event == "recovered"
  local lines = { (good and ":white_check_mark: *" or ":rotating_light: *") .. plain(message.title) .. "*" }
  if message.text and message.text ~= "" then
    lines[#lines + 1] = plain(message.text)
  end
  if message.cause then
    lines[#lines + 1] = "*Why:* " .. plain(message.cause.message)
  end

  local where = {}
  for _, key in ipairs { "stage", "environment", "host" } do
    if message[key] then
      where[#where + 1] = key .. " " .. plain(message[key])
    end
  end
  if #where > 0 then
    lines[#lines + 1] = "*Where:* " .. table.concat(where, ", ")
  end
  if message.revision then
    local by = message.author and (" by " .. plain(message.author)) or ""
    lines[#lines + 1] = "*Commit:* " .. plain(message.revision:sub(1, 12)) .. by
  end
  if message.output and message.output ~= "" then
    lines[#lines + 1] = code(tail(message.output, 2000))
  end
  if message.command then
    lines[#lines + 1] = "*Look further:* `" .. plain(message.command):gsub("`", "'") .. "`"
  end
  return table.concat(lines, "\n")
end

return phased.alert {
  name = "slack",
  options = {
    url = { "url_or_secret", required = true, doc = "The incoming webhook's URL; it is a secret." },
    channel = { "text", doc = "Another channel, where the webhook allows it." },
    timeout = { "duration", default = "30s", doc = "The limit of one request." },
  },
  send = function(options, message)
    phased.http {
      options.url,
      method = "POST",
      json = { text = text(message), channel = options.channel, unfurl_links = false },
      timeout = options.timeout,
    }
  end,
}
