-- Releases side by side on each host, and a link to the one that serves:
--
--   DIR/releases/<id>   what the artifact holds, one directory a release
--   DIR/shared/         what outlives releases: logs, uploads; every release has a link to each
--   DIR/current         the link to the release that serves, switched at once
--
--   local releases = require "deploy.releases"
--   local app = releases { dir = "/srv/shop", artifact = "app", shared = { "log", "uploads" } }
--
--   prepare = app.prepare,
--   deploy  = function(host, release) app.activate(host, release); host:service("shop"):restart() end,
--
-- dir        where all of it lies; made where its parent may be written, else make it once and give it to the user who deploys
-- artifact   which artifact of the release: a tree
-- shared     directories (or files, once they are in shared/) that every release shares; leave them out of the artifact
--            (run:artifact { ..., exclude = ... }), otherwise each is removed from the release when it is prepared
-- keep       so many releases stay (5), the one that serves and the one before it always among them
-- user       does all of it by sudo -n as this user
-- owner      of what is unpacked; needs user = "root"
--
-- prepare touches nothing that serves: a release that `current` points to is left as it is. It may be the environment's `prepare`, or be
-- called first thing in `deploy`.

local KEYS = { dir = "string", artifact = "string", shared = "table", keep = "number", user = "string", owner = "string" }

local function wrong(what) error("deploy.releases: " .. what, 4) end

local function checked(options)
  if type(options) ~= "table" then wrong "takes one table: releases { dir = \"/srv/shop\", artifact = \"app\" }" end
  for key, value in pairs(options) do
    local kind = KEYS[key]
    if not kind then
      wrong(("unknown key %q; known are artifact, dir, keep, owner, shared, user"):format(tostring(key)))
    end
    if type(value) ~= kind then wrong(("%s must be a %s, not %s"):format(key, kind, tostring(value))) end
  end
  local dir, artifact = options.dir, options.artifact
  if not dir or not artifact then wrong "needs dir and artifact: releases { dir = \"/srv/shop\", artifact = \"app\" }" end
  if dir:sub(1, 1) ~= "/" or dir:find("[\n\r]") or ("/" .. dir .. "/"):find("/../", 1, true) or dir:find "^/+$" then
    wrong(("dir = %q must be an absolute directory of its own, without .."):format(dir))
  end
  local keep = options.keep or 5
  if math.type(keep) ~= "integer" or keep < 2 then
    wrong(("keep = %s must be a whole number, at least 2: the release that serves and the one before it"):format(tostring(keep)))
  end
  local shared = {}
  for i, name in ipairs(options.shared or {}) do
    local bad = type(name) ~= "string" or name == "" or name:sub(1, 1) == "/" or name:find("[\n\r]")
      or ("/" .. name .. "/"):find("/%.%.?/")
    if bad then wrong(("shared: %q must be a path within the release, without . and .."):format(tostring(name))) end
    shared[i] = name:gsub("/+$", "")
  end
  if options.shared and #shared == 0 and next(options.shared) ~= nil then
    wrong "shared must be a list: { \"log\", \"uploads\" }"
  end
  return {
    dir = dir:gsub("/+$", ""), artifact = artifact, keep = keep, shared = table.concat(shared, "\n"), user = options.user,
    owner = options.owner,
  }
end

-- Prints "serves" when the release is the one that serves.
local LOOK = [=[
mkdir -p "$DIR/releases" "$DIR/shared"
if [ -e "$DIR/current" ] && [ ! -L "$DIR/current" ]; then
  echo "$DIR/current is a directory and no link: move it away, then deploy again" >&2
  exit 1
fi
now=$(readlink "$DIR/current" || true)
if [ "${now##*/}" = "$ID" ] && [ -d "$DIR/releases/$ID" ]; then echo serves; fi
]=]

-- Every shared thing is a link in the release. It is not the one that serves.
local LINK = [=[
cd "$DIR/releases/$ID"
echo "$SHARED" | while IFS= read -r name; do
  [ -n "$name" ] || continue
  to=$DIR/shared/$name
  [ -e "$to" ] || mkdir -p "$to"
  if [ -L "$name" ] && [ "$(readlink "$name")" = "$to" ]; then continue; fi
  if [ -d "$name" ] && [ ! -L "$name" ] && [ -n "$(find "$name" ! -type d | head -n 1)" ]; then
    echo "note: $name is in the artifact, too; its content there is not used. Leave it out with run:artifact { exclude = ... }"
  fi
  rm -rf "$name"
  case $name in */*) mkdir -p "${name%/*}" ;; esac
  ln -s "$to" "$name"
done
]=]

-- The switch is one rename. Where mv cannot take the link's own place (an old busybox), there is a moment without it.
-- `releases/.history` has each release that was activated, the latest last.
local SWITCH = [=[
[ -d "$DIR/releases/$ID" ] || { echo "$DIR/releases/$ID is not there: the release was not prepared on this host" >&2; exit 1; }
cd "$DIR"
now=$(readlink current || true)
if [ "$now" != "releases/$ID" ]; then
  rm -f .current.new
  ln -s "releases/$ID" .current.new
  mv -fT .current.new current 2>/dev/null || { rm -f current; mv -f .current.new current; }
fi
[ "$(readlink current)" = "releases/$ID" ] || { echo "$DIR/current is not a link to releases/$ID" >&2; exit 1; }
[ "$(tail -n 1 releases/.history 2>/dev/null || true)" = "$ID" ] || echo "$ID" >>releases/.history
]=]

-- The latest first: by the history, and then what was prepared only. What cannot be removed is no failure of the release.
local PRUNE = [=[
cd "$DIR/releases"
kept=0 seen=' '
set -f
for id in $(tail -n 1000 .history | sed -n '1!G;h;$p') $(ls -1); do
  case $seen in *" $id "*) continue ;; esac
  seen="$seen$id "
  case $id in *[!0-9a-f.]* | .*) continue ;; esac
  [ -d "$id" ] && [ ! -L "$id" ] || continue
  kept=$((kept + 1))
  [ "$kept" -gt "$KEEP" ] || continue
  rm -rf "$id" ".phased-tree-$id" || echo "note: $DIR/releases/$id could not be removed"
done
tail -n 1000 .history >.history.new && mv -f .history.new .history
]=]

return function(options)
  local o = checked(options)

  local function sh(host, release, name, text)
    local env = { DIR = o.dir, ID = release.id, SHARED = o.shared, KEEP = o.keep }
    return host:sh { text, name = name, env = env, user = o.user }
  end

  local releases = {}

  -- Brings the release to the host, complete, beside what serves.
  function releases.prepare(host, release)
    local artifact = release.artifacts[o.artifact]
    if artifact.kind ~= "tree" then
      error(("deploy.releases: the artifact %q is a %s; it must be a directory"):format(o.artifact, artifact.kind), 0)
    end
    if sh(host, release, "look", LOOK).stdout:find("serves", 1, true) then return end
    local to = o.dir .. "/releases/" .. release.id
    host:upload { artifact, to = to, unpack = true, user = o.user, owner = o.owner }
    sh(host, release, "link shared", LINK)
  end

  -- Makes it the one that serves; old ones go.
  function releases.activate(host, release)
    sh(host, release, "switch", SWITCH)
    sh(host, release, "remove old releases", PRUNE)
  end

  return releases
end
