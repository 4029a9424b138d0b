-- One number from a Prometheus server (or Thanos, Mimir, VictoriaMetrics), by an instant query of its HTTP API.
--
--   cause = require "probes.prometheus" {
--     url = "http://prometheus:9090",
--     query = 'sum(rate(http_errors_total[1m])) / sum(rate(http_requests_total[1m]))',
--     above = 0.01, lasting = "2m",
--   }
--
-- The query must give one number: a scalar, or a vector of one series. A vector without any, and NaN, are no data: that never makes a
-- release bad, and never lets it pass. In the query $hosts stands for the names of the hosts that are measured, $addresses for their
-- addresses, as an expression: instance=~"($addresses):9100". A comparison with a baseline needs one of them.

-- As it stands inside an expression inside a quoted string of PromQL: both take backslashes away.
local function expression(text)
  return (text:gsub('[%.%+%*%?%(%)%[%]{}^$|\\]', "\\\\%0"):gsub('"', '\\"'))
end

local function alternatives(hosts, field)
  local all = {}
  for n, host in ipairs(hosts) do
    all[n] = expression(host[field])
  end
  return table.concat(all, "|")
end

-- The query with its hosts, and whether it has any.
local function filled(query, hosts)
  local places = { hosts = "name", addresses = "address" }
  local found = false
  local text = query:gsub("%$(%a+)", function(word)
    if places[word] then
      found = true
      return alternatives(hosts, places[word])
    end
  end)
  return text, found
end

local function encoded(text)
  return (text:gsub("[^%w%-_%.~]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function ask(options, query)
  local answer = phased.http {
    options.url:gsub("/+$", "") .. "/api/v1/query",
    method = "POST",
    headers = { ["content-type"] = "application/x-www-form-urlencoded" },
    bearer = options.token,
    body = "query=" .. encoded(query),
    timeout = options.timeout,
    check = false,
  }
  local ok, said = pcall(phased.json.decode, answer.body)
  if not ok or type(said) ~= "table" or not said.status then
    error(("%s answered %d, and not as Prometheus does: %s"):format(options.url, answer.status, answer.body:sub(1, 200)), 0)
  end
  if said.status ~= "success" then
    error(("Prometheus refused the query: %s (%s)"):format(said.error or "no reason given", said.errorType or answer.status), 0)
  end
  return said
end

-- A sample is { time, "number" }.
local function number(sample, message)
  local text = sample[2]
  local value = tonumber(text)
  if text == "NaN" or text == "+Inf" or text == "-Inf" then
    return { message = ("the query gives %s%s"):format(text, message and "; " .. message or "") }
  elseif not value then
    error(("Prometheus gave %q, which is no number"):format(tostring(text)), 0)
  end
  return { value = value, message = message }
end

return phased.probe {
  name = "prometheus",
  options = {
    query = { "text", required = true, doc = "PromQL that gives one number." },
    url = { "url", default = "http://127.0.0.1:9090", doc = "The server, with the prefix of its paths if it has one." },
    token = { "secret", doc = "Sent as a bearer token." },
    above = { "number", doc = "A value above this is bad." },
    below = { "number", doc = "A value below this is bad." },
    lasting = { "duration", doc = "A bad value counts once it has been there for so long." },
    timeout = { "duration", default = "10s", doc = "The limit of one query." },
  },
  measure = function(options, about)
    local query, has_hosts = filled(options.query, about.hosts)
    if about.group == "baseline" and not has_hosts then
      error("the query cannot tell the baseline's hosts from others: put $hosts or $addresses into it", 0)
    elseif has_hosts and #about.hosts == 0 then
      return { message = "there are no such hosts" }
    end

    local said = ask(options, query)
    local kind, result = said.data.resultType, said.data.result
    -- What a part of a federation could not answer for is said, whatever the number.
    local warning = said.warnings and said.warnings[1]
    if kind == "scalar" then
      return number(result, warning)
    elseif kind ~= "vector" then
      error(("the query gives a %s; it must give one number, as sum(...) or avg_over_time(...) do"):format(kind), 0)
    elseif #result == 0 then
      return { message = warning or "the query gives no series" }
    elseif #result > 1 then
      error(("the query gives %d series; make them one, as with sum(...) or max(...)"):format(#result), 0)
    elseif not result[1].value then
      error("the query gives a histogram; take a number from it, as with histogram_quantile(...)", 0)
    end
    return number(result[1].value, warning)
  end,
}
