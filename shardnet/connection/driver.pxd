cimport cython

from shardnet.connection._steps cimport Stepper, enter_task, leave_task, run_in, step
from shardnet.connection.resume cimport Waiter
from shardnet.watcher._sys cimport flag

cdef int PARKED

cdef class Driver(Stepper):
    cdef public object task
    cdef object _coro, _loop
    cdef flag _put_aside, _failed
    cdef object _value
    cpdef advance(self)
    cdef _step(self)
    @cython.locals(waiter=Waiter)
    cdef _note(self, value)
    cdef _take(self)
    @cython.locals(parked=Waiter)
    cpdef bint resume(self, waiter, context) except -1
    cpdef run(self)
    cdef _put_by(self, value, bint failed)
    cdef _let_go(self, Waiter waiter)
