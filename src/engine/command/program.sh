# The host's half of the command protocol (see ../command.rs): POSIX sh, coreutils, util-linux flock and setsid.
# Comments and indentation are stripped before it is sent. Forks are what a step costs: builtins wherever they do.
# Set in front of it, as literals: MARK V T B I F O E G P and, by verb, more; the functions `launch` and `feed`.
#   T token  B base or empty  I expected host id or empty  O E offsets to resume output at
#   L time limit, centiseconds  K grace after TERM, seconds  M most unread output, bytes  G epoch or empty  P its file

x() { echo "X $*"; }
refuse() {
  # Shells do not all say why a file could not be written; a tool does, and its complaint is the reason given.
  [ "$1" != unwritable ] || { cp /proc/self/status "$B/probe" && rm -f "$B/probe"; }
  x refused "$@"
  exit 0
}

# Centiseconds of boot time: it counts while the machine sleeps and nobody can set it.
now() {
  read -r up rest </proc/uptime
  now=$((${up%.*} * 100 + 1${up#*.} - 100))
}

# The first contact of this user with this host: say what is missing, make the base and its id.
first() {
  miss=
  for t in flock setsid env stat dd head mkdir mv rm sleep; do
    command -v "$t" >/dev/null 2>&1 || miss="$miss $t"
  done
  [ -z "$miss" ] || refuse host_unsupported "these commands are missing:$miss"
  [ -r /proc/uptime ] && [ -r /proc/sys/kernel/random/boot_id ] && [ -e /dev/fd/0 ] ||
    refuse host_unsupported "/proc and /dev/fd are not there"
  mkdir -p "${B%/*}/" && { [ -d "$B" ] || (umask 077 && mkdir "$B") || [ -d "$B" ]; } || refuse unwritable
  close
  true >>"$B/id.lock" || refuse unwritable
  exec 9>>"$B/id.lock"
  flock -w 9.5 9 || refuse host_unsupported "flock -w does not work in $B: util-linux's flock and a local file system are needed"
  if flock -n "$B/id.lock" true; then
    refuse host_unsupported "locks do not hold in $B: set ssh.base to a directory on a local file system"
  fi
  if [ ! -s "$B/id" ]; then
    read -r id </proc/sys/kernel/random/uuid
    echo "$id" >"$B/id.new" && mv -f "$B/id.new" "$B/id" || refuse unwritable
  fi
  exec 9>&-
}

# Ours, closed to others, no link somebody else laid.
close() {
  [ ! -L "$B" ] && [ -O "$B" ] || refuse base "is not a directory of ours"
  set -- $(stat -c '%a' "$B")
  [ "$1" = 700 ] || refuse base "has mode $1, not 700"
}

base() {
  d=
  if [ -z "$B" ]; then
    while read -r k uid rest; do
      [ "$k" != Uid: ] || break
    done </proc/self/status
    B=/var/tmp/phased-$uid
  fi
  : "${USER:=${LOGNAME:-$(id -un)}}" "${HOME:=/}" "${SHELL:=/bin/sh}"
  [ -s "$B/id" ] && [ ! -L "$B" ] && [ -O "$B" ] || first
  read -r id rest <"$B/id" || refuse unwritable
  echo "I $id $USER $B"
  if [ -n "$I" ] && [ "$I" != "$id" ]; then
    x replaced "$id"
    exit 0
  fi
  d=$B/$T
}

# Sets `code` if it is over: `go` begins with the end, or was renamed where the disk had no room even for that.
ended() {
  code=void
  [ ! -e "$d.void" ] || return 0
  fin=$d.go
  if [ -e "$fin" ]; then
    read -r k rest code <"$fin"
    [ "$k" = end ] && [ -n "$code" ]
    return
  fi
  [ -s "$d.lock" ] || return 1
  for fin in "$d".exit.*; do
    code=${fin##*.}
    [ ! -e "$fin" ] || return 0
  done
  return 1
}

# A younger deployment has been here: this one must not begin anything any more.
epoch() {
  [ -n "$G" ] || return 0
  seen=
  [ ! -e "$B/$P" ] || read -r seen <"$B/$P"
  [ "$seen" != "$G" ] || return 0
  true >>"$B/$P.lock" || refuse unwritable
  exec 5>>"$B/$P.lock"
  flock 5 || refuse host_unsupported "flock failed"
  seen=0
  [ ! -s "$B/$P" ] || read -r seen <"$B/$P"
  [ "$seen" -le "$G" ] || refuse stale_epoch "$seen"
  echo "$G" >"$B/$P.new" && mv -f "$B/$P.new" "$B/$P" || refuse unwritable
  exec 5>&-
}

# Under `lock`, and nothing was begun or ended: run it. This process becomes its wrapper and does not return; a child of it
# goes on to talk to the asker. (The other way round the command would be begun by `&`, which makes it deaf to INT and QUIT.)
begin() {
  epoch
  read -r boot </proc/sys/kernel/random/boot_id
  now
  end=$((now + L))
  # The mark that ends each stream of a short answer lies in the lock's file: every file costs a host's disk some time.
  export -p >"$d.err" && true >"$d.out" && printf %s "$MARK." >"$d.lock" || refuse unwritable
  exec 8>>"$d.out"
  # All that could need disk space exists before the command does: a full disk is a refusal and never a doubt.
  # The first line is where the end will be written, over what is there already.
  if ! { printf '%-39s\n' begun && echo "$boot" && echo "$now" && echo "$end"; } >"$d.go"; then
    rm -f "$d.go"
    refuse unwritable
  fi
  (
    exec 9<"$d.lock"
    short
    settle
  ) &
  # Nothing of the connection is ours any more.
  exec </dev/null >/dev/null 2>&1
  if [ -n "$FEED" ]; then
    feed 8>&- | (begun)
  else
    (begun)
  fi
  code=$?
  now
  printf '%-39s\n' "end $now $code" 1<>"$d.go" || exec mv -f "$d.go" "$d.exit.$code"
  exit 0
}

# The command's process, up to the moment it becomes the command: its own session, and nothing of the launcher's environment.
begun() {
  while read -r k name; do
    case $k$name in
    export*=* | declare-x\ *=*)
      name=${name#-x }
      name=${name%%=*}
      case $name in
      PATH | HOME | USER | SHELL | *[!A-Za-z0-9_]*) ;;
      *) unset "$name" ;;
      esac
      ;;
    esac
  done <"$d.err"
  true >"$d.err"
  trap - HUP PIPE
  exec >>"$d.out" 2>>"$d.err" 8>&-
  export HOME USER SHELL
  launch
}

# As long as this is locked somebody reads: begun before the watchdog is, which asks.
reading() {
  exec 5>>"$d.reader"
  flock -s 5
}

# The first moments of a command, which are the whole life of most. Woken by `lock`, for `wait` is nobody's yet: a process left
# behind may hold that on, so not for long. Then `wait` is locked: the wrapper shares what we have opened.
short() {
  flock -s -w 0.0$((first * 3)) 9 || ended || flock -s -w 0.$first 9 || ended || {
    flock 8
    reading
    watchdog
    dog=1
  }
  exec 8>&- 9<&-
}

# Whether any process of the command lives: the lock says so, never a pid.
alive() {
  exec 6>>"$d.lock"
  flock -n 6
  alive=$?
  exec 6>&-
  [ "$alive" = 1 ]
}

signal() {
  alive || exit 0
  # Once known it stays: what outlives its leader is signalled after the file has its last name.
  [ "$pg" -gt 1 ] || [ ! -e "$d.go" ] || while read -r k rest; do
    [ "$k" != pg ] || pg=$rest
  done <"$d.go"
  [ "$pg" -gt 1 ] || return 0
  # A command of another user is signalled as that user, by the right that started it.
  kill -"$1" -"$pg" 2>/dev/null || [ -z "$AS" ] || echo "kill -$1 -$pg" | sudo -n -u "$AS" -- /bin/sh
}

# More output than may lie here, and nobody reads it: no reader at all, or one that has not got on for a minute.
unread() {
  set -- $(stat -c %s "$d.out" "$d.err")
  ro=0 re=0
  [ ! -s "$d.read" ] || read -r ro re <"$d.read"
  [ $(($1 - ro + $2 - re)) -gt "$M" ] || return 1
  if [ "$ro $re" = "$seen" ]; then
    stalled=$((stalled + 1))
    [ "$stalled" -lt 60 ] || return 0
  else
    seen="$ro $re" stalled=0
  fi
  exec 6>>"$d.reader"
  flock -n 6
  r=$?
  exec 6>&-
  [ "$r" = 0 ] || return 1
  # A cut connection may be made again.
  unread=$((unread + 1))
  [ "$unread" -gt 3 ]
}

# One watchdog a command, in no session of the command's, begun once the command has proved not to be a short one.
watchdog() {
  (
    exec 3<&- 4<&- 5>&- 8<&- 9>&- </dev/null >/dev/null 2>&1
    exec 7>>"$d.watch"
    flock -n 7 || exit 0
    exec 8<"$d.out"
    why= seen= stalled=0 unread=0 pg=0
    while ! ended; do
      now
      if [ -e "$d.stop" ]; then
        why=stop
      elif [ "$now" -ge "$end" ]; then
        why=timeout
      elif unread; then
        why=output
      fi
      [ -z "$why" ] || break
      left=$((end - now))
      [ "$left" -lt 100 ] || left=100
      part=$((left % 100))
      [ "$part" -gt 9 ] || part=0$part
      # Woken when the wrapper ends. When it was killed and the command lives on, wait all the same.
      if flock -s -w "$((left / 100)).$part" 8; then
        ended || alive || exit 0
        flock -u 8
        sleep 0.5
      fi
    done
    [ -n "$why" ] || exit 0
    [ ! -e "$d.go" ] || echo "$why" >>"$d.go"
    # The whole group, also what outlives its leader.
    signal TERM
    n=0
    while [ "$n" -lt $((K * 10)) ]; do
      alive || exit 0
      if flock -s -w 0.1 8; then
        flock -u 8
        sleep 0.1
      fi
      n=$((n + 1))
    done
    n=0
    while [ "$n" -lt 20 ]; do
      signal KILL
      sleep 0.2
      n=$((n + 1))
    done
  ) &
}

# Frames of `stream` from where fd stands (offset `from`) to `to`. The asker is gone when it cannot be written to.
part() {
  at=$3
  while [ "$at" -lt "$4" ]; do
    n=$(($4 - at)) c=1
    if [ "$n" -gt 65536 ]; then
      c=$((n / 65536)) n=65536
      [ "$c" -le 16 ] || c=16
    fi
    echo "O $1 $at $((n * c))" && dd bs=$n count=$c <&$2 2>/dev/null || exit 0
    at=$((at + n * c))
    if [ "$1" = 1 ]; then O=$at; else E=$at; fi
    [ -z "$dog" ] || echo "$O $E" >"$d.read"
  done
}

emit() {
  [ -s "$d.out" ] || [ -s "$d.err" ] || return 0
  set -- $(stat -c %s "$d.out" "$d.err")
  part 1 3 "$O" "${1:-0}"
  part 2 4 "$E" "${2:-0}"
}

# What was read long ago is given back to the disk, 64 MiB behind the reader, where the file system can.
punch() {
  while [ $((O - po)) -gt 134217728 ]; do
    fallocate -p -o "$po" -l 67108864 "$d.out" 2>/dev/null
    po=$((po + 67108864))
  done
  while [ $((E - pe)) -gt 134217728 ]; do
    fallocate -p -o "$pe" -l 67108864 "$d.err" 2>/dev/null
    pe=$((pe + 67108864))
  done
}

streams() {
  [ -z "$open" ] || return 0
  open=1
  exec 3<"$d.out" 4<"$d.err"
  [ "$O" = 0 ] || dd bs=1 skip="$O" count=0 <&3 2>/dev/null
  [ "$E" = 0 ] || dd bs=1 skip="$E" count=0 <&4 2>/dev/null
  po=$((O / 67108864 * 67108864)) pe=$((E / 67108864 * 67108864))
}

# The end, once `ended` has found it. Variables are the whole program's: no two functions that call each other share a name.
finish() {
  if [ "$code" = void ]; then
    x void
    return 0
  fi
  why=exit
  {
    read -r k stop rest
    read -r rest
    read -r t0
    read -r rest
    while read -r k rest; do
      case $k in
      pg) ;;
      changed) CHANGED=$rest ;;
      *) why=$k ;;
      esac
    done
  } <"$fin"
  # Renamed for want of space: when it ended is not known.
  [ "$k$stop" != begun ] || stop=$t0
  if [ -s "$d.out" ] || [ -s "$d.err" ]; then
    # All of it is still to be told: by one process, without counting. A mark ends each stream, and what is longer than 16 MiB.
    if [ -z "$open" ] && [ "$O$E" = 00 ] && [ -s "$d.lock" ]; then
      echo "Z $why $code $((stop - t0))"
      exec head -q -c 16777216 "$d.out" "$d.lock" "$d.err" "$d.lock"
    fi
    streams
    emit
  fi
  x "$why" "$code" $((stop - t0)) "${CHANGED-}"
}

# Follow a command that runs, whoever began it, until the wrapper lets go of `wait`.
follow() {
  n=0
  while [ ! -s "$d.go" ]; do
    ended && return 0
    # Begun this very moment by another, who has not come as far yet, or who was killed before it got there.
    n=$((n + 1))
    [ "$n" -lt 200 ] || return 0
    sleep 0.02
  done
  { read -r rest && read -r rest && read -r t0 && read -r end; } <"$d.go" 2>/dev/null || return 0
  streams
  exec 8<"$d.out"
  [ -n "$dog" ] || reading
  w=0.2 quiet=0
  while :; do
    flock -s -w "$w" 8
    r=$?
    case $r in
    0) break ;;
    1) ;;
    *) refuse host_unsupported "flock -w failed ($r)" ;;
    esac
    [ -n "$dog" ] || watchdog
    dog=1
    was=$O.$E
    emit
    if [ "$was" = "$O.$E" ]; then
      quiet=$((quiet + 1)) w=0.3
      # Is the asker still there?
      [ $((quiet % 30)) -gt 0 ] || echo K || exit 0
    else
      quiet=0 w=0.1
      punch
    fi
  done
  exec 8<&- 5>&-
}

# Sending it again resolves it: the answer is the same, whoever asks and however often.
start() {
  settle
}

settle() {
  true >>"$d.lock" || refuse unwritable
  exec 9>>"$d.lock"
  while :; do
    if ended; then
      finish
      return 0
    fi
    flock -n 9
    r=$?
    case $r in
    0)
      ended && continue
      if [ -e "$d.go" ]; then
        # It ran, and nothing of it is left, nor its end.
        { read -r rest && read -r was; } <"$d.go"
        read -r boot </proc/sys/kernel/random/boot_id
        streams
        emit
        if [ "$was" = "$boot" ]; then x lost; else x rebooted; fi
        return 0
      fi
      if [ "$V" = stop ]; then
        # From now on a start still on its way can never begin.
        true >"$d.void" || refuse unwritable
        x void
        return 0
      fi
      begin
      ;;
    1)
      exec 9>&-
      [ "$V" != stop ] || [ -e "$d.stop" ] || true >"$d.stop" || refuse unwritable
      follow
      if ! ended && [ -s "$d.go" ] && alive; then
        # The wrapper was killed and the command lives: its time-out ends it; it is never begun again.
        now
        if [ "$now" -gt $((end + K * 100 + 500)) ] || [ "$tries" -gt $((K * 4 + 10)) ]; then
          x orphaned
          return 0
        fi
        [ "$V" != stop ] || tries=$((tries + 1))
        watchdog
        streams
        emit
        sleep 0.3
      fi
      ;;
    *) refuse host_unsupported "flock failed ($r)" ;;
    esac
    exec 9>>"$d.lock"
  done
}

stop() { start; }

main() {
  trap '' HUP PIPE
  LC_ALL=C
  export LC_ALL
  open= dog= po=0 pe=0 tries=0 first=2
  # Hundredths of a short time limit's half, at most 0.1 + 0.06 s.
  [ "$L" -gt 20 ] || first=1
  echo
  echo "$MARK"
  base
  "$V"
}
