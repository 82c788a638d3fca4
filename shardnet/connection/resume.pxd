cimport cython

from shardnet.connection._steps cimport Awaitable, Stepper, call_in
from shardnet.watcher.engine cimport Engine
from shardnet.watcher.hooks cimport HookEndpoint

cdef int IDLE, PARKED, WOKEN, CANCELLED

cdef class Waiter:
    cdef public bint _asyncio_future_blocking
    cdef readonly object _loop
    cdef HookEndpoint _endpoint
    cdef public object _wake_up
    cdef object _context
    cdef public Stepper _driver
    cdef object _error
    cdef public int state
    cdef int size
    cdef object task
    cdef park(self, Py_ssize_t size)
    cpdef leave(self)
    cdef _withdraw(self)
    cpdef retire(self)
    @cython.locals(driver=Stepper)
    cpdef wake_inline(self, finished)
    cpdef wake_deferred(self, Engine engine, finished)

cdef class Done(Awaitable):
    cpdef advance(self)
