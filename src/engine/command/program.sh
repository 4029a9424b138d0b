# The host's half of the command protocol (see ../command.rs): POSIX sh, coreutils, util-linux flock and setsid.
# Comments and indentation are stripped before it is sent. Processes are what a step costs, most of all those that run another
# program: builtins wherever they do.
#
# A channel's `sh` reads this once and stays: the resident. Each request is a subshell of it, in the foreground, with literals in
# front of one call of `main`, and nothing of it is left afterwards:
#   MARK  N number on this channel  V verb  T token  B base or empty  I expected host id or empty  O E offsets to resume output at
#   L time limit, centiseconds  K grace after TERM, seconds  M most unread output, bytes  G epoch or empty  P its file
#   AS user or empty  FEED has standard input  J what the control group counts is ours (see counts.sh)
#   U file that lists the run's commands here, or empty  F nobody asks about it again
#   and the functions `launch` and `feed`; by verb more.

nl='
'
tab='	'

# Once, in the resident: nothing of the launcher's environment gets to a command.
clean() {
  names=$(export -p)$nl
  while [ -n "$names" ]; do
    name=${names%%"$nl"*}
    names=${names#*"$nl"}
    case $name in
    "export "*=* | "declare -x "*=*)
      name=${name%%=*}
      name=${name##* }
      case $name in
      PATH | HOME | USER | LOGNAME | SHELL | *[!A-Za-z0-9_]*) ;;
      *) unset "$name" ;;
      esac
      ;;
    esac
  done
}

# The answers to what the asker says between requests: to whom it was said is gone already.
follow() { :; }
met() { :; }

# A line of ours. What an answer begins with waits for the first of them: every write is a packet.
say() {
  printf '%s%s\n' "$H" "$*" || exit 0
  H=
}
x() { say X "$@"; }
refuse() {
  # Shells do not all say why a file could not be written; a tool does, and its complaint is the reason given.
  [ "$1" != unwritable ] || { cp /proc/self/status "$B/probe" && rm -f "$B/probe"; }
  echo "$MARK" >&2
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
  H="${H}I $id $USER $B$nl"
  case $I in
  "$id") ;;
  "")
    # Nobody has noted yet which machine this is: nothing begins before that is on the asker's disk.
    printf %s "$H"
    H=
    read -r rest && [ "$rest" = met ] || exit 0
    ;;
  *)
    x replaced "$id"
    exit 0
    ;;
  esac
  d=$B/$T
}

# Sets `code` if it is over: `go` begins with the end, or was renamed where the disk had no room even for that. Beside `go`, `void` says
# nothing: it came too late. Where it was seen first and `go` was not, whoever writes that will see it (see `begin`).
ended() {
  forbidden=
  [ ! -e "$d.void" ] || forbidden=1
  fin=$d.go
  if [ -e "$fin" ]; then
    read -r k rest code <"$fin"
    [ "$k" = end ] && [ -n "$code" ]
    return
  fi
  [ ! -s "$d.lock" ] && [ -z "$forbidden" ] || for fin in "$d".exit.*; do
    code=${fin##*.}
    [ ! -e "$fin" ] || return 0
  done
  code=void
  [ -n "$forbidden" ]
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
  # In place: a higher number is never a shorter one.
  echo "$G" 1<>"$B/$P" || refuse unwritable
  exec 5>&-
}

# Only one of all who ask makes the file. It is not locked: that takes a process, and most commands are over before anybody asks again.
claim() {
  set -C
  { true >"$d.lock"; } 2>/dev/null
  r=$?
  set +C
  return "$r"
}

# Whoever ends what a run has left here finds it there (see left.sh).
list() {
  [ -z "$U" ] || echo "$T" >>"$B/$U"
}

# Nobody asks any more how it ended. What stays is the claim, without content: it will never begin again.
forget() {
  ended && true >"$d.lock" && rm -f "$fin" "$d.out" "$d.err" "$d.stop" "$d.read" "$d.reader" "$d.watch"
}

pass() {
  [ -z "$F" ] || forget
}

# What was claimed cannot be begun, and is nobody's any more.
unclaim() {
  rm -f "$d.go" "$d.lock"
  refuse unwritable
}

# Nothing of it is here: claim it and run it, or return if another has. This process is its wrapper. (As a child of this one by `&` the
# command would be deaf to INT and QUIT.)
begin() {
  epoch
  read -r boot </proc/sys/kernel/random/boot_id
  now
  end=$((now + L))
  born self
  if ! claim; then
    [ -e "$d.lock" ] || refuse unwritable
    return 0
  fi
  # The mark that ends each stream of a short answer lies in the lock's file: every file costs a host's disk some time.
  true >"$d.err" && true >"$d.out" && printf %s "$MARK." >"$d.lock" || unclaim
  # 9 is what `lock` is locked by and 8 what `wait` is. 3 and 4 are the command's own, kept to see how far it got.
  exec 9>>"$d.lock" 8>>"$d.out" 3>>"$d.out" 4>>"$d.err"
  # All that could need disk space exists before the command does: a full disk is a refusal and never a doubt.
  # The first line is where the end will be written, over what is there already.
  printf '%-39s\n%s\n%s\n%s\n' "begun ${stat%% *} $born" "$boot" "$now" "$end" >"$d.go" || unclaim
  # Forbidden meanwhile: each of us looks for the other's file once its own is there, so that one of us sees it, or both.
  if [ -e "$d.void" ]; then
    printf '%-39s\n' "end $now void" 1<>"$d.go" || mv -f "$d.go" "$d.exit.void"
    x void
    exit
  fi
  list
  if [ -n "$J" ]; then
    counts
    [ -z "$U" ] || unit >>"$B/$U.$boot"
  fi
  # Whoever takes the end of this line is the one who speaks to the asker. Shells read byte by byte, and two at once share the rest.
  exec 7<<\E
ticket
E
  # A background process has no standard input but what it is given.
  exec 6<&0
  attend &
  deputy=$!
  exec 6<&- </dev/null
  if [ -n "$FEED" ]; then
    feed 3>&- 4>&- 7<&- 8>&- | (begun)
  else
    (begun)
  fi
  code=$?
  now
  [ -z "$J" ] || [ "$code" = 0 ] || limited
  printf '%-39s\n' "end $now $code" 1<>"$d.go" || mv -f "$d.go" "$d.exit.$code"
  exec 8>&- 9>&-
  if read -r rest <&7; then
    written 3 && out=$pos && written 4 && o=$out e=$pos
    exec 3>&- 4>&-
    if ended; then finish; else x lost; fi
    pass
  fi
  exec 3>&- 4>&- 7<&-
  sweep
  # The next request is the resident's to read: not before the other reader has gone, which the asker's next word makes it do.
  wait "$deputy"
  exit
}

# The command's process, up to the moment it becomes the command.
begun() {
  trap - HUP PIPE
  exec >&3 2>&4 3>&- 4>&- 7<&- 8>&-
  unset LC_ALL
  export HOME USER SHELL
  launch
}

# Beside the wrapper, until the asker finds that it takes long, or is gone, or has its answer.
attend() {
  exec <&6 3>&- 4>&- 6<&-
  read -r rest
  read -r rest <&7 || exit 0
  # Both are locked from now on: the wrapper shares what we have opened, and the command one of it.
  flock 9
  flock 8
  exec 7<&- 9>&-
  reading
  watchdog
  dog=1
  exec 8>&-
  settle
  pass
  exit 0
}

# As long as this is locked somebody reads: begun before the watchdog is, which asks.
reading() {
  exec 5>>"$d.reader"
  flock -s 5
}

# Sets `stat`, and `born`: when the process began. Within a boot nobody else has its number and that (proc_pid_stat(5), field 22).
born() {
  stat= born=
  # A program may have given itself a name of several lines.
  { while read -r rest; do stat=$stat$rest; done <"/proc/$1/stat"; } 2>/dev/null
  [ -n "$stat" ] || return 1
  set -- ${stat##*") "}
  born=${20}
  # Dead, but its parent has not noticed.
  [ "$1" != Z ]
}

# What `go` says of the beginning, once all of it is there.
noted() {
  [ -s "$d.go" ] && { read -r rest && read -r was && read -r t0 && read -r end; } <"$d.go"
} 2>/dev/null

# Whether the wrapper lives, or who leads the command.
lives() {
  noted && read -r boot </proc/sys/kernel/random/boot_id && [ "$was" = "$boot" ] || return 1
  while read -r k number since; do
    case $k in
    begun | pg) [ -z "$since" ] || ! born "$number" || [ "$born" != "$since" ] || return 0 ;;
    esac
  done <"$d.go"
  return 1
}

# Whether any process of the command lives: the lock says so. Before it is locked, those we know by name.
alive() {
  exec 6>>"$d.lock"
  flock -n 6
  r=$?
  exec 6>&-
  [ "$r" = 1 ] || lives
}

# Whether the command's number is somebody else's by now: it comes again once nobody of the group is left, and what went into a session of
# its own may hold the lock still. The leader began when it noted so; who began at another time is another.
anothers() {
  [ -n "$led" ] || return 1
  born "$pg"
  [ -n "$born" ] && [ "$born" != "$led" ]
}

signal() {
  alive || exit 0
  # Once known it stays: what outlives its leader is signalled after the file has its last name.
  [ "$pg" -gt 1 ] || [ ! -e "$d.go" ] || while read -r k number rest; do
    [ "$k" != pg ] || pg=$number led=$rest
  done <"$d.go"
  [ "$pg" -gt 1 ] && ! anothers || return 0
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
    why= seen= stalled=0 unread=0 pg=0 led=
    while ! ended; do
      # Forgotten since.
      [ -e "$d.go" ] || exit 0
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
    say "O $1 $at $((n * c))" && dd bs=$n count=$c <&$2 2>/dev/null || exit 0
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

# How many bytes were written by what descriptor $1 is.
written() {
  read -r rest pos <"/proc/self/fdinfo/$1"
}

# What most commands print is a line or two of plain text: `out` and `text`, byte by byte what lies in the files, or failure.
brief() {
  [ -n "$o" ] && [ $((o + e)) -lt 1000 ] && [ "$O$E" = 00 ] && plain "$d.out" "$o" || return 1
  out=$text
  plain "$d.err" "$e"
}

plain() {
  text= line=
  exec 3<"$1"
  while IFS= read -r line; do
    text=$text$line$nl line=
    [ ${#text} -le "$2" ] || break
  done <&3
  text=$text$line
  written 3
  exec 3<&-
  # A NUL is dropped by `read`, but counted.
  [ "$pos" = "$2" ] && [ ${#text} = "$2" ] || return 1
  case $text in
  *[!\ -~"$tab$nl"]*) return 1 ;;
  esac
}

# The end, once `ended` has found it. Variables are the whole program's: no two functions that call each other share a name.
finish() {
  if [ "$code" = void ]; then
    x void
    return 0
  fi
  why=exit more=
  {
    read -r k stop rest
    # Renamed for want of space: when it ended is not known.
    [ "$k" = end ] || stop=
    read -r rest
    read -r t0
    read -r rest
    while read -r k rest; do
      case $k in
      pg) ;;
      more) more=" $rest" ;;
      changed) CHANGED=$rest ;;
      *) why=$k ;;
      esac
    done
  } <"$fin"
  : "${stop:=$t0}"
  if [ -s "$d.out" ] || [ -s "$d.err" ]; then
    if brief; then
      say "O 1 0 ${#out}$nl${out}O 2 0 ${#text}$nl${text}X $why $code $((stop - t0))$more"
      return 0
    fi
    # All of it is still to be told: by one process, without counting. A mark ends each stream, and what is longer than 16 MiB.
    # (Its rest would be asked for.)
    if [ -z "$open$F" ] && [ "$O$E" = 00 ] && [ -s "$d.lock" ]; then
      say "Z $why $code $((stop - t0))$more"
      head -q -c 16777216 "$d.out" "$d.lock" "$d.err" "$d.lock"
      return 0
    fi
    streams
    emit
  fi
  x "$why" "$code" $((stop - t0))"$more" "${CHANGED-}"
}

# Follow a command that runs, whoever began it, until the wrapper lets go of `wait`.
followed() {
  n=0
  until noted; do
    ended && return 0
    # Begun this very moment by another, who has not come as far yet, or who was killed before it got there.
    n=$((n + 1))
    [ "$n" -lt 200 ] || return 0
    sleep 0.02
  done
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
    told=$O.$E
    emit
    if [ "$told" = "$O.$E" ]; then
      quiet=$((quiet + 1)) w=0.3
      # Is the asker still there?
      [ $((quiet % 30)) -gt 0 ] || say K
    else
      quiet=0 w=0.1
      punch
    fi
  done
  exec 8<&- 5>&-
}

# Sending it again resolves it: the answer is the same, whoever asks and however often.
start() {
  [ -e "$d.lock" ] || [ -e "$d.go" ] || begin
  settle
}

stop() { settle; }

# Nobody has locked it: begun this very moment (1: it lives; 0: that is not known yet, or it has ended), or nobody of it is left (2, once
# that was said).
unlocked() {
  if ! noted && [ -z "$dog" ] && [ "$waits" -lt $((patience + 20)) ]; then
    # From now on a start still on its way can never begin, nor one that was claimed by somebody who comes no further. Without room for
    # it another may have begun.
    [ "$waits" -lt "$patience" ] || true >"$d.void" || [ "$V" != stop ] || refuse unwritable
    return 0
  fi
  ! lives || return 1
  ! ended || return 0
  read -r boot </proc/sys/kernel/random/boot_id
  [ "$was" != "$boot" ] || [ "$waits" -ge 20 ] || return 0
  # It ran, and nothing of it is left, nor its end.
  exec 9>&-
  streams
  emit
  if [ -z "$was" ] || [ "$was" = "$boot" ]; then x lost; else x rebooted; fi
  return 2
}

# The end, whoever began it, once there is one.
settle() {
  # How often nobody was found to live before that is believed: whoever began it may be about to say so. A stop forbids it at once.
  waits=0 patience=300 was=
  [ "$V" != stop ] || patience=0
  while :; do
    if ended; then
      finish
      return 0
    fi
    true >>"$d.lock" || refuse unwritable
    exec 9>>"$d.lock"
    flock -n 9
    r=$?
    [ "$r" -le 1 ] || refuse host_unsupported "flock failed ($r)"
    if [ "$r" = 0 ]; then
      unlocked
      r=$?
    fi
    exec 9>&-
    [ "$r" != 2 ] || return 0
    waits=$((waits + 1))
    # Is the asker still there?
    [ $((waits % 100)) -gt 0 ] || say K
    if [ "$r" = 0 ]; then
      ended || sleep 0.05
      continue
    fi
    [ "$V" != stop ] || [ -e "$d.stop" ] || true >"$d.stop" || refuse unwritable
    followed
    if ! ended && noted && alive; then
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
  done
}

# What the host keeps of a command goes once it does not run and ten looks, a day of uptime between each, have found it there.
# No age is read from a file: whoever sets the wall clock must not make a command forgotten that may be asked for once more.
sweep() {
  [ "$N" = 1 ] || return 0
  was= up=0 passed=0 n=0
  [ ! -s "$B/swept" ] || read -r was up passed n <"$B/swept"
  [ "$was" = "$boot" ] || up=0
  passed=$((passed + now - up))
  [ "$was" != "$boot" ] || [ "$passed" -ge 8640000 ] || return 0
  (
    exec </dev/null >/dev/null 2>&1 5>>"$B/swept.lock"
    cd "$B" && flock -n 5 || exit 0
    up=
    [ ! -s swept ] || read -r up rest <swept
    [ "$up" = "$was" ] || exit 0
    if [ "$passed" -ge 8640000 ]; then
      n=$((n + 1)) passed=0
      for f in *.lock run.*; do
        case $f in
        id.lock | swept.lock | epoch.*) ;;
        *) echo "${f%.lock}" ;;
        esac
      done >"seen.$n" || exit 0
      old=seen.$((n - 10))
      [ ! -e "$old" ] || while read -r f; do
        case $f in run.*) rm -f "$f" ;; esac
        d=$f
        [ ! -e "$f.lock" ] || lives || flock -n "$f.lock" rm -f "$f".*
      done <"$old"
      rm -f "$old"
    fi
    echo "$boot $now $passed $n" >swept.new && mv -f swept.new swept
  ) &
}

main() {
  trap '' HUP PIPE
  LC_ALL=C
  export LC_ALL
  open= dog= po=0 pe=0 tries=0 o= e= H="$nl$MARK $N$nl"
  base
  "$V"
}
