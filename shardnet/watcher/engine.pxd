cimport cython

from shardnet.watcher cimport _sys
from shardnet.watcher.endpoint cimport Agenda, Endpoint, Guest
from shardnet.watcher.hooks cimport HookEndpoint
from shardnet.watcher.meter cimport Meter
from shardnet.watcher.timers cimport Timer, TimerQueue

cdef Py_ssize_t LOOP_TURNS, READ_CANCELLED, READ_EOF, READ_OK
cdef Py_ssize_t SWAP_EXHAUSTED, SWAP_IN_USE_BYTES, SWAP_IN_USE_PEAK_BYTES, TIMER_PENDING

cdef class Engine:
    cdef readonly object cells
    cdef readonly _sys.SwapBuffer swap
    cdef readonly _sys.Poller poller
    cdef readonly Agenda agenda
    cdef public list guests_ready
    cdef public Meter meter
    cdef Py_ssize_t _room_min
    cdef bint _closed
    cdef list _table
    cdef int _position, _count
    cdef list _batch
    cdef Py_ssize_t _batch_position, _batch_start
    cdef object _acceptable, _deferred
    cdef TimerQueue _timers
    cdef object _wakeup
    cdef Guest _wake_guest

    cpdef add(self, Endpoint endpoint)
    cpdef free(self, Endpoint endpoint)
    cpdef int release(self, Endpoint endpoint) except? -1
    cpdef after(self, double delay_s, callback)
    cpdef cancel(self, Timer timer)
    @cython.locals(meter=Meter)
    cpdef turn(self, timeout_s=*)
    cpdef _wait_s(self, timeout_s)
    @cython.locals(poller=_sys.Poller, table=list, fd=int, events="unsigned int", endpoint=Endpoint)
    cdef _resolve(self)
    cdef _run_deferred(self)
    cdef _run_timers(self)
    cdef _accept(self)
    @cython.locals(endpoint=Endpoint)
    cdef _proceed(self)
    @cython.locals(endpoint=HookEndpoint)
    cdef _fail(self)
    @cython.locals(left=Py_ssize_t)
    cdef _complete_reads(self)
    @cython.locals(swap=_sys.SwapBuffer, ready=list, batch=list, used=Py_ssize_t, taken=Py_ssize_t, room=Py_ssize_t,
                   size=Py_ssize_t, endpoint=HookEndpoint)
    cdef Py_ssize_t _reap(self, Py_ssize_t left) except -1
    @cython.locals(batch=list, size=Py_ssize_t, start=Py_ssize_t, endpoint=HookEndpoint, meter=Meter)
    cdef _dispatch(self)
    cdef _check_open(self)
    cdef _enter(self, int fd, entry)
    cdef _forget(self, int fd, entry)
    cdef Guest _guest(self, int fd)
