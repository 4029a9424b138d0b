# Uploads and downloads: part of the program only when asked for (see program.sh; what comes after the transfer is in place.sh).

# The bytes come on our standard input, once we have said from where on; what is here already is not sent again.
upload() {
  true >>"$d.lock" || refuse unwritable
  exec 9>>"$d.lock"
  flock -w 9.5 9 || { x busy; return 0; }
  if ended; then
    finish
    return 0
  fi
  epoch
  list
  s=$B/blobs
  [ -d "$s" ] || mkdir "$s" || [ -d "$s" ] || refuse unwritable
  find "$s" -type f -mtime +1 -exec rm -f {} + 2>/dev/null
  CHANGED=1
  if there; then
    CHANGED=0
  else
    true >>"$s/$SHA.lock" || refuse unwritable
    exec 5>>"$s/$SHA.lock"
    flock -w 9.5 5 || { x busy; return 0; }
    same "$s/$SHA" || fetch
    exec 5>&-
  fi
  # Given up meanwhile.
  if [ -e "$d.stop" ]; then
    true >"$d.void"
    x void
    return 0
  fi
  if [ "$CHANGED" = 0 ]; then keep; else place "$s/$SHA"; fi
  { echo "end 0 0" && echo - && echo 0 && echo 0 && echo "changed $CHANGED"; } >"$d.go"
  x exit 0 0 "$CHANGED"
}

fetch() {
  f=$s/$SHA.part
  true >>"$f" || refuse unwritable
  have=$(stat -c %s "$f")
  if [ "$have" -gt "$SIZE" ]; then
    true >"$f"
    have=0
  fi
  say "G $have"
  head -c $((SIZE - have)) >>"$f" || refuse unwritable
  if same "$f"; then
    mv -f "$f" "$s/$SHA" || refuse unwritable
    return 0
  fi
  [ "$(stat -c %s "$f")" -ge "$SIZE" ] || { x short; exit 0; }
  rm -f "$f"
  refuse damaged
}

# A file of the host, from an offset on.
download() {
  [ -f "$FROM" ] || refuse download "there is no file $FROM"
  [ -r "$FROM" ] || refuse download "$FROM may not be read"
  exec 3<"$FROM"
  set -- $(stat -L -c '%s %Y' "$FROM")
  say "S $1 $2"
  [ "$O" = 0 ] || dd bs=1 skip="$O" count=0 <&3 2>/dev/null
  part 1 3 "$O" "$1"
  x exit 0 0
}
