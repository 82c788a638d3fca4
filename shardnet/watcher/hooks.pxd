cimport cython

from shardnet.watcher cimport _sys
from shardnet.watcher.endpoint cimport Agenda, Endpoint

cdef Py_ssize_t CONNECTIONS_PAUSED, READ_CANCELLED, READ_EOF, READ_OK, READ_PENDING, SEND_QUEUE_BYTES
cdef Py_ssize_t SWAP_SPILL_BYTES, TRAFFIC_SENT, WRITE_CANCELLED, WRITE_OK, WRITE_PENDING
cdef Py_ssize_t CHUNK_MAX_BYTES

cdef class HookEndpoint(Endpoint):
    cdef public _sys.flag readable
    cdef _sys.flag _unix, _drained_when_short, _reap_due, _error_noted
    cdef int _wanted
    cdef int reaped
    cdef readonly unsigned long long unsent_bytes
    cdef readonly object _queue

    cpdef on_received(self, Py_ssize_t start, Py_ssize_t size)
    cpdef on_end(self)
    cpdef on_failed(self, error)
    cpdef on_error_waiting(self)
    cpdef on_sent(self)
    cpdef on_progress(self)

    cpdef post_read(self, Py_ssize_t size=*)
    cpdef bint withdraw_read(self) except -1
    @cython.locals(agenda=Agenda, received=Py_ssize_t)
    cpdef receive_now(self, Py_ssize_t size)
    @cython.locals(sent=Py_ssize_t)
    cpdef bint submit_write(self, data) except -1
    @cython.locals(agenda=Agenda, sent=Py_ssize_t, unsent=Py_ssize_t)
    cdef Py_ssize_t _submit_write(self, data) except -100000
    @cython.locals(sent=Py_ssize_t)
    cpdef proceed(self)

    cdef note_end(self)
    @cython.locals(wanted=Py_ssize_t, size=Py_ssize_t)
    cdef Py_ssize_t reap(self, _sys.SwapBuffer swap, Py_ssize_t start, Py_ssize_t room) except -1000
    cdef reap_error(self)
    cpdef Py_ssize_t _receive_into(self, _sys.SwapBuffer swap, Py_ssize_t start, Py_ssize_t room) except -100000
    cpdef _receive_bytes(self, Py_ssize_t size)
    cpdef Py_ssize_t _send_bytes(self, data) except -100000
    cpdef Py_ssize_t _send_queue(self, queue) except -100000
    @cython.locals(cells="unsigned long long*")
    cdef _drop_queue(self)
    cdef _found_empty(self)
    cpdef _drained(self)
    @cython.locals(cells="unsigned long long*")
    cdef _drop_sent(self, queue, Py_ssize_t sent)
