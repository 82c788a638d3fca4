cimport cython

from shardnet.connection.host cimport Host
from shardnet.watcher cimport _sys
from shardnet.watcher._sys cimport flag
from shardnet.watcher.hooks cimport HookEndpoint

cdef int CLOSED, FLUSHING, LINGERING, OPEN

cdef class Aside:
    cdef public object failure
    cdef public object cause
    cdef public bint reported
    cdef public object senders
    cdef public object closers
    cdef public object timer
    cdef public unsigned long long mark_bytes

cdef class Stream(HookEndpoint):
    cdef readonly Host _host
    cdef unsigned char _stage
    cdef unsigned char _reason
    cdef flag _paused
    cdef flag _peer_ended
    cdef flag _ended
    cdef flag _output_ended
    cdef readonly Aside _aside

    cpdef write(self, data)
    cpdef bint write_plainly(self, data) except -1
    cpdef send(self, data)
    cpdef drain(self)
    cpdef bint is_closing(self) except -1
    cpdef close(self)
    cpdef abort(self)
    cpdef on_end(self)
    cpdef on_failed(self, error)
    cpdef on_error_waiting(self)
    cpdef on_sent(self)
    cpdef on_progress(self)
    cpdef _release_reader(self)
    cpdef _on_sending_over(self)
    @cython.locals(sent=Py_ssize_t)
    cdef bint _submit(self, data) except -1
    cdef _await_unsent(self, position)
    cdef _send_error(self)
    cdef _arm_stall(self)
    cdef _disarm(self)
    cdef Aside _put_aside(self)
    cdef _close(self, int reason)
    cdef _send_end(self)
    cdef _linger(self)
    cdef _discard(self, Py_ssize_t size)
    cdef _fail(self, error)
    cdef _reset(self, int reason)
    cdef _end(self, int reason)
    cdef _settle(self, Aside aside)
