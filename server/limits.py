"""Every limit in one place: unit and qualifier last. Those an operator may change are defaults of `config.Config`."""

from __future__ import annotations

# What a peer may send.
LINE_BYTES_MAX = 64 * 1024 + 4096  # a publish of a whole message, its escapes and its envelope
MESSAGE_BYTES_MAX = 64 * 1024  # `data`, as compact JSON
HEAD_BYTES_MAX = 16 * 1024  # request line and headers
URL_BYTES_MAX = 8 * 1024
HEADERS_MAX = 100
TOKEN_BYTES_MAX = 8 * 1024
CHANNEL_BYTES_MAX = 255
USER_BYTES_MAX = CHANNEL_BYTES_MAX - 1  # "@" + user is a channel
POSITION_BYTES_MAX = 2048  # in a cluster, 20 a shard
CHANNELS_PER_CONNECTION_MAX = 128
HISTORY_PAGE_MESSAGES_MAX = 1000
PRESENCE_CONNECTIONS_MAX = 10_000  # that an answer to `presence` names; past it there is only their number
BODY_BYTES_MAX = 2 * MESSAGE_BYTES_MAX  # an HTTP request body: a message with escapes

# Time.
REQUEST_SECONDS_MAX = 10.0  # an HTTP request other than a stream, body and answer
HANDSHAKE_SECONDS_MAX = 10.0
HEARTBEAT_SECONDS = 25.0
USER_TIMEOUT_SECONDS = 30.0  # TCP_USER_TIMEOUT: sent, never acknowledged
KEEPALIVE_IDLE_SECONDS = 120
KEEPALIVE_INTERVAL_SECONDS = 15
KEEPALIVE_PROBES = 4
BUS_PATIENCE_SECONDS = 2.0  # a worker that begins lets nobody in before its bus is up, or this has passed
ACCEPT_PAUSE_SECONDS = 0.5  # after EMFILE and its kind
LINGER_SECONDS_MAX = 2.0  # for a peer to read our farewell and close

# One turn of the loop.
TURN_EVENTS_MAX = 128
TURN_SECONDS_MAX = 0.002
TURN_ACCEPTS_MAX = 64
READ_BYTES = 16 * 1024

# Descriptors of a worker that no session gets: half for polite refusals, half for the bus and health checks.
DESCRIPTORS_RESERVED = 64

# Admission.
ACCEPT_BURST_SECONDS = 1.0  # of the allowed rate may come at once
PUBLISH_BURST_SECONDS = 2.0
PUBLISH_ABUSE_SECONDS = 10.0  # of the allowed rate may be refused at once before the connection ends
PUBLISHES_IN_FLIGHT_MAX = 2048  # of one session, without an answer from Redis: a tenth of what all of a worker may have
REFUSALS_TOLD_SECONDS = 10.0  # between two reports in the log

# What may wait for one slow peer.
BACKLOG_BYTES_MAX = 256 * 1024
CORKED_BYTES_MAX = 4 * 1024 * 1024  # while it is being sent what it missed; the frames are shared by all who wait
LISTEN_BACKLOG = 65_535  # the kernel clips it to net.core.somaxconn

# What may wait for all subscribers of a worker: past it, Redis is made to wait.
WAITING_BYTES_MAX = 16 * 1024 * 1024

# Processes.
SILENT_SECONDS_MAX = 10.0  # without showing its clock; time in which it waited for a processor does not count
SUSPECT_SECONDS = 1.5  # after which it is looked at whether it waits
RESTARTS_MAX = 10
RESTART_WINDOW_SECONDS = 60.0
FORK_PAUSE_SECONDS = 1.0  # until it is tried again, where the kernel had no process for a worker
STOP_SECONDS_MAX = 5.0  # between INT and KILL of a worker that was told to stop now
FAREWELL_SECONDS_MAX = 0.5  # of these, for what it has said at last to be read
DRAIN_SECONDS_MAX = 86_400
DRAIN_QUEUE_SECONDS = (
    0.5  # before the end of a drain no connection begins, so that the queues run empty: a long round trip
)
DRAIN_EXTRA_SECONDS = LINGER_SECONDS_MAX + 1.0  # behind its window, for the last who were told

assert MESSAGE_BYTES_MAX < LINE_BYTES_MAX
assert MESSAGE_BYTES_MAX < BACKLOG_BYTES_MAX, "one message must fit a peer's backlog"
assert URL_BYTES_MAX < HEAD_BYTES_MAX
assert TOKEN_BYTES_MAX <= URL_BYTES_MAX
assert HANDSHAKE_SECONDS_MAX < HEARTBEAT_SECONDS
assert KEEPALIVE_IDLE_SECONDS > HEARTBEAT_SECONDS
