cdef class Awaitable:
    cdef public bint over
    cpdef advance(self)
    cpdef abandon(self)

cdef class Stepper(Awaitable):
    cdef public bint cancel_asked
    cpdef bint resume(self, waiter, context) except -1
    cpdef run(self)

cpdef step(Stepper stepper, coro)
cpdef run_in(context, Stepper stepper)
cpdef enter_task(loop, task)
cpdef leave_task(loop, task)
cpdef call_in(context, function, argument)
cpdef try_in(context, function, argument)
cpdef try_in_with(context, function, first, second)
