# Sent with a command whose channel has a control group of its own.

# What the kernel has counted in our control group: processes it killed for want of memory, and forks it refused. One hierarchy
# (version 2), or one for each (version 1).
counts() {
  ooms=0 forks=0 memory= pids=
  while IFS=: read -r k rest group; do
    case ,$rest, in
    ,,) : "${memory:=/sys/fs/cgroup$group}" "${pids:=/sys/fs/cgroup$group}" ;;
    *,memory,*) memory=/sys/fs/cgroup/memory$group ;;
    *,pids,*) pids=/sys/fs/cgroup/pids$group ;;
    esac
  done </proc/self/cgroup
  for k in "$memory/memory.events" "$memory/memory.oom_control"; do
    [ ! -r "$k" ] || while read -r k rest; do
      [ "$k" != oom_kill ] || ooms=$rest
    done <"$k"
  done
  [ ! -r "$pids/pids.events" ] || while read -r k rest; do
    [ "$k" != max ] || forks=$rest
  done <"$pids/pids.events"
}

# Where the processes of our unit are listed: in systemd's own hierarchy, whatever controllers it has.
unit() {
  while IFS=: read -r k rest group; do
    case $rest in
    '') echo "/sys/fs/cgroup$group$nl/sys/fs/cgroup/unified$group" ;;
    name=systemd) echo "/sys/fs/cgroup/systemd$group" ;;
    esac
  done </proc/self/cgroup
}

# It failed: did the kernel have a part in it? Counted, not guessed from an exit code.
limited() {
  was=$ooms n=$forks
  counts
  if [ "$ooms" -gt "$was" ]; then
    was=$((ooms - was)) n=memory k=$memory/memory.max
    [ -e "$k" ] || k=$memory/memory.limit_in_bytes
  elif [ "$forks" -gt "$n" ]; then
    was=$((forks - n)) n=pids k=$pids/pids.max
  else
    return 0
  fi
  rest=
  [ ! -r "$k" ] || read -r rest <"$k"
  echo "more limit $n $was $rest" >>"$d.go"
}
