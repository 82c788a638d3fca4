from shardnet.connection.reading cimport ReadStream

cdef int CLOSED, FLUSHING, LINGERING, OPEN

cdef class Connection(ReadStream):
    cdef object __weakref__
    cdef unsigned long long _packed_peer
    cdef object _peer
    cdef readonly Py_ssize_t id
    cdef public object state
    cpdef end_after(self, error)
    cdef _make_waiter(self)
    cdef _start_task(self, coro)
    cpdef _on_handler_returned(self, task)
