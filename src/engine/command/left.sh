# Sent with `left`: ends what the commands of a run have left running on this machine, and those that still run. Then nobody asks about any
# of them again.

# Every process of ours in the units the commands were in, but for this shell. And wherever it is, every one with the run in its
# environment, but for what was begun on a host of a deployment, which may be this machine: that is to stay.
found() {
  pids=
  [ ! -s "$units" ] || while read -r k; do
    # A control group that is no unit of ours has others in it.
    case $k in
    */phased-job@*) ;;
    *) continue ;;
    esac
    [ ! -r "$k/cgroup.procs" ] || while read -r p; do
      mine "$p"
    done <"$k/cgroup.procs"
  done <"$units"
  for k in $(grep -lszxF "PHASED_RUN=$R" /proc/[0-9]*/environ); do
    p=${k#/proc/}
    # All of it at once: a process that is becoming another program has none for a moment.
    e=$nl$({ tr '\n\0' ' \n' <"$k"; } 2>/dev/null)$nl
    case $e in
    *"${nl}PHASED_HOST_ID="*) ;;
    *"${nl}PHASED_RUN=$R$nl"*) mine "${p%/environ}" ;;
    esac
  done
}

# What we may not signal is not ours.
mine() {
  case " $$ $me $pids " in
  *" $1 "*) ;;
  *) ! kill -0 "$1" 2>/dev/null || pids="$pids $1" ;;
  esac
}

left() {
  R=${U#run.}
  # One that was cut off may be at it still: what the next stage begins is not its business.
  if { true >>"$B/$U"; } 2>/dev/null; then
    exec 5>>"$B/$U"
    while :; do
      flock -w 1 5
      r=$?
      say K
      [ "$r" = 1 ] || break
    done
  fi
  read -r me rest </proc/self/stat
  # After a reboot the names of units begin anew.
  read -r boot </proc/sys/kernel/random/boot_id
  units=$B/$U.$boot
  found
  t=0 names=
  for p in $pids; do
    t=$((t + 1))
    # Without its arguments: a secret may be among them.
    [ "$t" -gt 5 ] || names="$names$(tr '\n\0' ' \n' <"/proc/$p/cmdline" | head -n 1 | head -c 100);"
  done
  for p in $pids; do
    kill -TERM "$p"
  done 2>/dev/null
  n=0
  while [ -n "$pids" ] && [ "$n" -lt $((K * 10 + 50)) ]; do
    sleep 0.1
    # Is the asker still there?
    say K
    n=$((n + 1))
    found
    [ "$n" -lt $((K * 10)) ] || for p in $pids; do
      kill -KILL "$p"
    done 2>/dev/null
  done
  set -- $pids
  if [ $# = 0 ]; then
    [ ! -s "$B/$U" ] || while read -r T; do
      d=$B/$T
      forget
    done <"$B/$U"
    rm -f "$B/$U" "$B/$U".*
  fi
  x left "$t" $# "$names"
}
