# What is here is put in its place, or unpacked there: part of an upload (files.sh), and a command by itself where another user is to do
# it. It takes
#   TO where  SHA SIZE of the bytes  UNPACK they are a tar archive  MODE OWNER or empty  T token
# and `refuse` ends it.

same() {
  [ -f "$1" ] || return 1
  [ "$(stat -L -c %s "$1")" = "$SIZE" ] || return 1
  sum=$(sha256sum <"$1") || refuse host_unsupported "sha256sum is missing"
  [ "${sum%% *}" = "$SHA" ]
}

# Sets `sum` to a digest of what no change leaves as it was, of every file and link below $1 that the list on standard input names.
prints() {
  sum=$( (cd "$1" && TZ=UTC0 xargs -0 -r stat -c '%n %f %s %i %Y %z' -- 2>/dev/null) | sha256sum) ||
    refuse host_unsupported "sha256sum is missing"
  sum=${sum%% *}
}

# Is it there already? Of a tree that is told by a note beside it, made when it was unpacked: what was unpacked must be as it was, what
# has come since is others' business.
there() {
  note=${TO%/*}/.phased-tree-${TO##*/}
  if [ -z "$UNPACK" ]; then
    same "$TO"
    return
  fi
  [ -d "$TO" ] && [ ! -L "$TO" ] && [ -s "$note" ] || return 1
  {
    read -r sha owner print || return 1
    [ "$sha" = "$SHA" ] && [ "$owner" = "${OWNER:--}" ] || return 1
    prints "$TO"
  } <"$note"
  [ "$sum" = "$print" ]
}

# What is there gets what else was asked for.
keep() {
  [ -n "$UNPACK" ] || [ -z "$OWNER" ] || chown "$OWNER" "$TO" || refuse upload
  [ -z "$MODE" ] || chmod "$MODE" "$TO" || refuse upload
}

gone() {
  rm -rf "$tmp" "$tmp.list" "$tmp.note"
  refuse "$@"
}

# From the file $1, which is whole.
place() {
  dir=${TO%/*}/
  tmp=$dir.phased-$T
  [ -d "$dir" ] || refuse upload "$dir is not a directory"
  if [ -z "$UNPACK" ]; then
    [ ! -d "$TO" ] || refuse upload "$TO is a directory"
    cp "$1" "$tmp" || gone unwritable
    [ -z "$OWNER" ] || chown "$OWNER" "$tmp" || gone upload
    [ -z "$MODE" ] || chmod "$MODE" "$tmp" || gone upload
    mv -fT "$tmp" "$TO" || gone upload
    return
  fi
  rm -rf "$tmp" "$tmp.old"
  # Modes as they are in it; the times are those of unpacking, so that no cache takes a new file for an old one.
  mkdir "$tmp" && tar -xpmof "$1" -C "$tmp" || gone upload
  [ -z "$OWNER" ] || chown -hR "$OWNER" "$tmp" || gone upload
  [ -z "$MODE" ] || chmod "$MODE" "$tmp" || gone upload
  (cd "$tmp" && find . ! -type d -print0) >"$tmp.list" || gone upload
  prints "$tmp" <"$tmp.list"
  { echo "$SHA ${OWNER:--} $sum" && cat "$tmp.list"; } >"$tmp.note" || gone upload
  if [ -e "$TO" ] || [ -L "$TO" ]; then
    mv -T "$TO" "$tmp.old" || gone upload
  fi
  if ! mv -T "$tmp" "$TO"; then
    [ ! -e "$tmp.old" ] || mv -T "$tmp.old" "$TO"
    gone upload
  fi
  mv -f "$tmp.note" "$note" || gone upload
  rm -rf "$tmp.old" "$tmp.list"
}
