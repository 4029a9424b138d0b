-- What an HTTP page says: whether it answers well, or a number in its JSON.
--
--   cause = require "probes.http" { "https://shop.example.com/healthz", below = 1 }               -- 1 when it answers 200 to 299, else 0
--   cause = require "probes.http" { "https://shop.example.com/stats", json = "queue.depth", above = 1000 }
--
-- With json, a page that does not answer, and a place in it that is absent or null, are no data.

-- The value at a path of keys; numbers count from 1 as Lua's do.
local function at(data, path)
  for key in path:gmatch "[^.]+" do
    if type(data) ~= "table" then
      return nil
    end
    data = data[math.tointeger(tonumber(key)) or key]
  end
  return data
end

return phased.probe {
  name = "http",
  options = {
    url = { "url_or_secret", position = 1, required = true, doc = "The page." },
    json = { "text", doc = "The path of a number in the answer, \"queue.depth\"; without it the value is 1 or 0." },
    headers = { "map", doc = "Further headers." },
    token = { "secret", doc = "Sent as a bearer token." },
    above = { "number", doc = "A value above this is bad." },
    below = { "number", doc = "A value below this is bad." },
    lasting = { "duration", doc = "A bad value counts once it has been there for so long." },
    timeout = { "duration", default = "10s", doc = "The limit of one request." },
  },
  measure = function(options)
    local function ask(check)
      return phased.http { options.url, headers = options.headers, bearer = options.token, timeout = options.timeout, check = check }
    end

    if not options.json then
      local ok, answer = pcall(ask, false)
      if not ok then
        return { value = 0, message = tostring(answer) }
      end
      local good = answer.status >= 200 and answer.status <= 299
      return { value = good and 1 or 0, message = "status " .. answer.status }
    end

    local ok, data = pcall(phased.json.decode, ask(true).body)
    if not ok then
      error(("the answer is no JSON: %s"):format(tostring(data)), 0)
    end
    local value = at(data, options.json)
    if value == nil or type(value) == "userdata" then
      return { message = ("the answer has no %s"):format(options.json) }
    elseif type(value) ~= "number" then
      error(("%s of the answer is a %s, not a number"):format(options.json, type(value)), 0)
    end
    return value
  end,
}
