"""The Slurm job of a distributed search: a Redis server, the driver and its workers in one job."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from train import slurm
from train.run_folder import REPOSITORY_ROOT

SCRIPT = """
cd {repository}
{setup}mkdir -p -m 700 {folder}/redis
password=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \\n')
port=$((20000 + SLURM_JOB_ID % 20000))
(
    umask 077
    cat > {folder}/redis/redis.conf <<END
bind * -::*
port $port
requirepass $password
dir $(realpath {folder})/redis
appendonly yes
END
)
redis-server {folder}/redis/redis.conf > {folder}/redis/log 2>&1 &
redis=$!

# One worker per task. One that dies is not missed for long: its batch is played by another.
srun --no-kill --kill-on-bad-exit=0 {python} -m search.worker {folder} &
workers=$!

export TAYLORZERO_BROKER="redis://:$password@$(hostname):$port/0"
for attempt in 1 2 3 4 5; do # until the server listens
    (exec 3<>"/dev/tcp/$(hostname)/$port") 2>/dev/null && break
    sleep 1
done
{python} -m search {arguments} &
driver=$!

# Slurm says so before it ends or preempts the job: everybody saves, then the job is queued again.
stop() {{ kill -TERM $driver $workers 2>/dev/null; }}
trap stop USR1 TERM
while kill -0 $driver 2>/dev/null; do
    wait $driver
done
wait $driver
code=$?
trap '' USR1 TERM
kill -TERM $workers 2>/dev/null
wait $workers
kill -TERM $redis
wait $redis
if [ $code = 75 ]; then
    scontrol requeue $SLURM_JOB_ID
fi
exit $code
"""


def script(
    name: str, argv: Sequence[str], folder: Path, config: slurm.SlurmConfig, *, workers: int
) -> str:
    """Text for sbatch.

    Args:
      name: of the search's config. argv: its other arguments, without those of the launcher.
      folder: of the run. workers: processes that play, over all nodes.
    """
    run = shlex.quote(str(folder))
    arguments = shlex.join(
        [name, *slurm.without_flags(argv, ("run-folder", "resume", "workers", "broker"))]
    )
    lines = slurm.header(config, name=f"search-{name}", log=folder / "slurm.log", tasks=workers)
    body = SCRIPT.format(
        repository=shlex.quote(str(REPOSITORY_ROOT)),
        setup="".join(f"{line}\n" for line in config.setup),
        folder=run,
        python=shlex.quote(sys.executable),
        arguments=f"{arguments} --run-folder {run} --workers celery --resume",
    )
    return "\n".join(lines) + "\n" + body
