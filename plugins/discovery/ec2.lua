-- Hosts from Amazon EC2.
--
--   hosts = require "discovery.ec2" { region = "eu-west-1", tags = { role = "web" } }
--
-- Credentials are found as Amazon's own tools find them: the daemon's environment, the shared files (profile), web identity, the container,
-- the instance profile; or given as access_key_id and secret_access_key. role is assumed with these. What is needed is
-- ec2:DescribeInstances, nothing else (and ec2:GetConsoleOutput for console_keys). An instance's id is the host's; its tags are its labels,
-- and so are region, type, image, vpc, subnet, account and autoscaling_group. AWS_ENDPOINT_URL in the daemon's environment is honoured.

-- EC2's words for what phased calls state.
local STATES = {
  pending = "starting",
  running = "running",
  stopping = "stopped",
  stopped = "stopped",
  ["shutting-down"] = "terminated",
  terminated = "terminated",
}

local ADDRESSES = {
  private = "private_ip",
  public = "public_ip",
  ipv6 = "ipv6",
  private_dns = "private_dns",
  public_dns = "public_dns",
}

local FACTS = { "region", "type", "image", "vpc", "subnet", "account", "autoscaling_group" }

-- Consoles that are read at one asking; the others' turn comes at the next one.
local CONSOLES = 100

-- Who asks whom, and for how long, besides what is asked.
local function asked(options, what)
  for _, name in ipairs { "access_key_id", "secret_access_key", "session_token", "profile", "role", "external_id", "endpoint" } do
    what[name] = options[name]
  end
  what.timeout = options.timeout or "2m"
  return what
end

local function ask(options, filters)
  local regions = options.regions or { options.region }
  return phased.ec2_instances(asked(options, { regions = regions, filters = filters, page_size = options.page_size }))
end

local function host(instance, options)
  local labels = {}
  for tag, value in pairs(instance.tags) do
    if tag ~= "" then labels[tag] = value end
  end
  for _, fact in ipairs(FACTS) do
    labels[fact] = labels[fact] or instance[fact]
  end
  local state = STATES[instance.state]
  if not state then
    error(("EC2: instance %s in %s is in the state %s, which phased does not know; filter it out, or upgrade phased"):format(instance.id, instance.region, tostring(instance.state)), 0)
  end
  local address = instance[ADDRESSES[options.address]]
  if not address then
    -- What has ended has no address any more, and needs none.
    if state == "running" then
      error(("EC2: instance %s in %s has no %s address; choose another with address = ..., or filter it out"):format(instance.id, instance.region, options.address), 0)
    end
    address = instance.private_ip or instance.id
  end
  local name = instance.tags[options.name_tag]
  return {
    id = instance.id,
    name = name ~= "" and name or nil,
    address = address,
    zone = instance.zone,
    user = options.user,
    labels = labels,
    state = state,
    reason = state ~= "running" and instance.state_reason or nil,
  }
end

-- Gives hosts the keys that their instances printed at their first boot. An id is one machine, so what was found once is kept. A new one that
-- has not printed any yet is still starting: nobody could tell it from another.
local function console_keys(options, about, instances, found)
  local unread, n, known = {}, 0, {}
  for _, id in ipairs(about.known) do known[id] = true end
  for _, one in ipairs(found) do
    one.host_keys = about.host_keys[one.id]
    if one.state == "running" and not one.host_keys and n < CONSOLES then
      unread[one.id], n = instances[one.id].region, n + 1
    end
  end
  if n == 0 then return end
  local read = phased.ec2_host_keys(asked(options, { instances = unread }))
  for _, one in ipairs(found) do
    one.host_keys = one.host_keys or read[one.id]
    if one.state == "running" and not one.host_keys and not known[one.id] then
      one.state, one.reason = "starting", "its console does not show its host keys (yet)"
    end
  end
end

local function hosts(options, about)
  if (options.region == nil) == (options.regions == nil) then
    error("EC2: give region or regions", 0)
  end
  local filters = {}
  for name, value in pairs(options.filters or {}) do filters[name] = value end
  for tag, value in pairs(options.tags or {}) do filters["tag:" .. tag] = value end
  if options.autoscaling_group then filters["tag:aws:autoscaling:groupName"] = options.autoscaling_group end

  local found, there = {}, {}
  for _, instance in ipairs(ask(options, filters)) do
    there[instance.id] = instance
    found[#found + 1] = host(instance, options)
  end

  -- A terminated instance loses its tags before it is forgotten: those that are missing are asked for by their ids, so that it is known
  -- whether they ended or only do not match any more.
  local missing = {}
  for _, id in ipairs(about.known) do
    if not there[id] and #missing < 200 then missing[#missing + 1] = id end
  end
  if #missing > 0 then
    for _, instance in ipairs(ask(options, { ["instance-id"] = missing })) do
      local gone = host(instance, options)
      if gone.state ~= "running" then found[#found + 1] = gone end
    end
  end
  if options.console_keys then console_keys(options, about, there, found) end
  return found
end

return phased.discovery {
  name = "ec2",
  options = {
    region = { "text", doc = "The region." },
    regions = { "list", doc = "Several regions, asked side by side." },
    tags = { "map", doc = "Tags that an instance must have; * and ? in a value are wildcards." },
    filters = { "data", doc = 'Further filters of DescribeInstances: { ["vpc-id"] = "vpc-1", ["instance-type"] = { "t3.micro", "t3.small" } }.' },
    autoscaling_group = { "text", doc = "Only instances of this Auto Scaling group." },
    address = {
      "text", values = { "private", "public", "ipv6", "private_dns", "public_dns" }, default = "private",
      doc = "Which address its sshd is reached at.",
    },
    name_tag = { "text", default = "Name", doc = "The tag that holds what people call it." },
    user = { "text", doc = "The user to log in as; that of ssh when absent." },
    console_keys = {
      "boolean", default = false,
      doc = "Hosts are known by the keys that their instances printed on their consoles; needs ec2:GetConsoleOutput.",
    },
    profile = { "text", doc = "A profile of the shared files of Amazon's tools." },
    role = { "text", doc = "The ARN of a role to assume." },
    external_id = { "text", doc = "What the role's owner asks for." },
    access_key_id = { "text_or_secret", doc = "An access key; with secret_access_key." },
    secret_access_key = { "secret", doc = "Its secret." },
    session_token = { "secret", doc = "Of temporary keys." },
    page_size = { "integer", doc = "Reservations in one answer, 5 to 1000, where large answers are too slow." },
    endpoint = { "url", doc = "Another endpoint than Amazon's." },
  },
  hosts = hosts,
}
