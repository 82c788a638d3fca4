cpdef enum:
    EVENT_IN = 0x1
    EVENT_PRI = 0x2
    EVENT_OUT = 0x4
    EVENT_ERROR = 0x8
    EVENT_FAILED = 0x18
    EVENT_RDHUP = 0x2000
    EVENT_ODD = 0x201A
    EVENT_OUTWARD = 0x1C

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd

    struct epoll_event:
        unsigned int events
        epoll_data_t data

cdef extern from *:
    ctypedef bint flag "unsigned char"  # A bool of one byte, for what there is a lot of.

cdef class Poller:
    cpdef add(self, int fd, unsigned int events)
    cpdef modify(self, int fd, unsigned int events)
    cpdef remove(self, int fd)
    cpdef int poll(self, object timeout_s) except -1
    cpdef (int, unsigned int) event(self, int index)
    cpdef close(self)

cdef class EpollPoller(Poller):
    cdef int _fd
    cdef int _count
    cdef epoll_event _events[1024]
    cdef int _control(self, int operation, int fd, unsigned int events) except -1

cdef class SwapBuffer:
    cdef bytes _bytes, _handed_out_before
    cdef bint _is_handed_out
    cdef char* _memory
    cdef readonly Py_ssize_t size
    cdef public Py_ssize_t used
    cdef _renew(self)
    cpdef Py_ssize_t receive(self, int fd, Py_ssize_t start, Py_ssize_t room) except -100000
    cpdef bytes take(self, Py_ssize_t start, Py_ssize_t size)

cdef unsigned long long* cells_of(object cells) except NULL
cdef double* values_of(object values) except NULL
cdef Py_ssize_t bucket_of(double* bounds, Py_ssize_t count, double value) noexcept
cdef void observe(
    unsigned long long* cells, Py_ssize_t first, unsigned long long* bounds, Py_ssize_t count, unsigned long long value
) noexcept
cpdef long long monotonic_ns() noexcept
cpdef Py_ssize_t receive_into(int fd, object view) except -2
cpdef receive(int fd, Py_ssize_t size)
cpdef Py_ssize_t send(int fd, object data) except -100000
cpdef Py_ssize_t size_of(object data) except -1
cpdef Py_ssize_t send_many(int fd, object buffers) except -100000
cpdef accept(object listener)
cpdef close(int fd)
