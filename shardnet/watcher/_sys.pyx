"""The system calls of the engine in C: what `_sys.py` does, name for name, for the compiled build.

`_sys.py` says what each name promises. Here stands only what differs: no object is made on the way to the kernel, and
the GIL is given up where a call may block, which is in `EpollPoller.poll` alone.
"""

import os
from itertools import islice

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    /* The size of a bytes object that nobody else has seen, within what was allocated for it. */
    static void shardnet_set_size(PyObject *bytes, Py_ssize_t size) {
        Py_SET_SIZE((PyVarObject *)bytes, size);
        PyBytes_AS_STRING(bytes)[size] = 0;
        _Py_COMP_DIAG_PUSH
        _Py_COMP_DIAG_IGNORE_DEPR_DECLS
        ((PyBytesObject *)bytes)->ob_shash = -1;
        _Py_COMP_DIAG_POP
    }
    """
    void shardnet_set_size(bytes data, Py_ssize_t size)
    Py_ssize_t Py_REFCNT(object value)

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int count, int timeout_ms)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t c_recv "recv"(int fd, void* buffer, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void* buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, msghdr* message, int flags)
    enum:
        MSG_NOSIGNAL

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* time)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

EVENT_EDGE = 1 << 31
EVENT_EXCLUSIVE = 1 << 28
ENDPOINT_EVENTS = EVENT_IN | EVENT_OUT | EVENT_RDHUP | EVENT_PRI | EVENT_EDGE
EVENTS_PER_POLL_MAX = 1024
WAIT_MAX_S = 86400.0
BUFFERS_PER_WRITE_MAX = 64


cdef class Poller:
    __slots__ = ()

    @property
    def rearm(self):
        return None

    cpdef add(self, int fd, unsigned int events):
        raise NotImplementedError

    cpdef modify(self, int fd, unsigned int events):
        raise NotImplementedError

    cpdef remove(self, int fd):
        raise NotImplementedError

    cpdef int poll(self, object timeout_s) except -1:
        raise NotImplementedError

    cpdef (int, unsigned int) event(self, int index):
        raise NotImplementedError

    cpdef close(self):
        raise NotImplementedError


cdef class EpollPoller(Poller):
    def __cinit__(self):
        self._count = 0
        self._fd = epoll_create1(EPOLL_CLOEXEC)
        if self._fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        if self._fd >= 0:
            c_close(self._fd)

    cdef int _control(self, int operation, int fd, unsigned int events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        if epoll_ctl(self._fd, operation, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    cpdef add(self, int fd, unsigned int events):
        self._control(EPOLL_CTL_ADD, fd, events)

    cpdef modify(self, int fd, unsigned int events):
        self._control(EPOLL_CTL_MOD, fd, events)

    cpdef remove(self, int fd):
        cdef epoll_event event  # Kernels before 2.6.9 want one.
        epoll_ctl(self._fd, EPOLL_CTL_DEL, fd, &event)

    cpdef int poll(self, object timeout_s) except -1:
        cdef double wait_s = -1.0
        cdef double until_s = 0.0
        cdef int events_max = min(1024, EVENTS_PER_POLL_MAX)
        cdef int count, timeout_ms
        if timeout_s is not None:
            wait_s = timeout_s
            if not 0.0 <= wait_s <= 86400.0:
                wait_s = 86400.0 if wait_s > 0.0 else 0.0
            if wait_s > 0.0:
                until_s = _now_s() + wait_s
        self._count = 0
        while True:
            # Rounded up, as the standard library does: never awake too early, and never spinning until it is time.
            timeout_ms = -1 if wait_s < 0.0 else <int>(wait_s * 1000.0 + 0.999999)
            with nogil:
                count = epoll_wait(self._fd, self._events, events_max, timeout_ms)
            if count >= 0:
                self._count = count
                return count
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
            if wait_s > 0.0:
                wait_s = max(0.0, until_s - _now_s())

    cpdef (int, unsigned int) event(self, int index):
        return (self._events[index].data.fd, self._events[index].events)

    cpdef close(self):
        if self._fd >= 0:
            c_close(self._fd)
            self._fd = -1


cpdef long long monotonic_ns() noexcept:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec * 1000000000LL + time.tv_nsec


def error_of(Py_ssize_t number):
    return OSError(number, os.strerror(number))


cdef double _now_s() noexcept:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + time.tv_nsec * 1e-9


FAILED = -2
cdef Py_ssize_t HANDED_OUT_MIN_BYTES = 16384  # Less is copied in less time than a buffer takes to be allocated.


cdef class SwapBuffer:
    # The memory is that of a bytes object. When one receive alone has filled much of it, that is handed out instead of a
    # copy, and before the next receive another takes its place: the one that was handed out before, if nobody else
    # refers to it any more.

    def __cinit__(self, Py_ssize_t size_bytes):
        self.size = size_bytes
        self._bytes = PyBytes_FromStringAndSize(NULL, size_bytes)
        self._memory = PyBytes_AS_STRING(self._bytes)
        memset(self._memory, 0, size_bytes)

    cpdef Py_ssize_t receive(self, int fd, Py_ssize_t start, Py_ssize_t room) except -100000:
        if self._is_handed_out:
            self._renew()
        return _try_receive(fd, self._memory + start, room)

    def put(self, Py_ssize_t start, bytes data):
        if self._is_handed_out:
            self._renew()
        memcpy(self._memory + start, PyBytes_AS_STRING(data), min(PyBytes_GET_SIZE(data), self.size - start))

    cpdef bytes take(self, Py_ssize_t start, Py_ssize_t size):
        if size >= HANDED_OUT_MIN_BYTES and size == self.used:
            shardnet_set_size(self._bytes, size)
            self._is_handed_out = True
            return self._bytes
        return PyBytes_FromStringAndSize(self._memory + start, size)

    cdef _renew(self):
        cdef bytes handed_out = self._bytes
        self._is_handed_out = False
        self._bytes = None
        if self._handed_out_before is not None and Py_REFCNT(self._handed_out_before) == 1:
            self._bytes = self._handed_out_before
            shardnet_set_size(self._bytes, self.size)
        else:
            self._bytes = PyBytes_FromStringAndSize(NULL, self.size)
        self._memory = PyBytes_AS_STRING(self._bytes)
        self._handed_out_before = handed_out


cdef inline Py_ssize_t _try_receive(int fd, void* memory, Py_ssize_t size) except -100000:
    cdef Py_ssize_t received
    while True:
        received = c_recv(fd, memory, size, 0)
        if received >= 0:
            return received
        if errno == EAGAIN:
            return -1
        if errno != EINTR:
            return -2 - errno
        PyErr_CheckSignals()


cdef inline Py_ssize_t _receive(int fd, void* memory, Py_ssize_t size) except -2:
    cdef Py_ssize_t received = _try_receive(fd, memory, size)
    if received < -1:
        raise error_of(-2 - received)
    return received


cdef unsigned long long* cells_of(object cells) except NULL:
    cdef Py_buffer view
    cdef unsigned long long* at
    PyObject_GetBuffer(cells, &view, PyBUF_WRITABLE)
    at = <unsigned long long*>view.buf
    PyBuffer_Release(&view)  # The address stays right for as long as `cells`, which the caller keeps, is not released.
    return at


cdef double* values_of(object values) except NULL:
    return <double*>cells_of(values)


cdef Py_ssize_t bucket_of(double* bounds, Py_ssize_t count, double value) noexcept:
    cdef Py_ssize_t bucket = 0
    while bucket < count and value > bounds[bucket]:
        bucket += 1
    return bucket


cdef void observe(
    unsigned long long* cells, Py_ssize_t first, unsigned long long* bounds, Py_ssize_t count, unsigned long long value
) noexcept:
    cdef Py_ssize_t bucket = 0
    while bucket < count and value > bounds[bucket]:
        bucket += 1
    cells[first + bucket] += 1
    cells[first + count + 1] += value


cpdef Py_ssize_t receive_into(int fd, object view) except -2:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_WRITABLE)
    try:
        return _receive(fd, buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


# What `receive` receives into: nobody else runs between that and the copy, for the GIL is held.
cdef char _scratch[65536]


cpdef receive(int fd, Py_ssize_t size):
    cdef Py_ssize_t received = _receive(fd, _scratch, min(size, <Py_ssize_t>sizeof(_scratch)))
    return None if received < 0 else PyBytes_FromStringAndSize(_scratch, received)


cdef inline Py_ssize_t _send(int fd, const void* memory, Py_ssize_t size) except -100000:
    cdef Py_ssize_t sent
    while True:
        sent = c_send(fd, memory, size, MSG_NOSIGNAL)
        if sent >= 0:
            return sent
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -errno
        PyErr_CheckSignals()


cpdef Py_ssize_t send(int fd, object data) except -100000:
    cdef Py_buffer buffer
    if PyBytes_CheckExact(data):
        return _send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        return _send(fd, buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


cpdef Py_ssize_t size_of(data) except -1:
    if PyBytes_CheckExact(data):
        return PyBytes_GET_SIZE(data)
    return len(data) if isinstance(data, bytearray) else memoryview(data).cast("B").nbytes


cpdef Py_ssize_t send_many(int fd, object buffers) except -100000:
    cdef Py_buffer views[64]
    cdef iovec parts[64]
    cdef msghdr message
    cdef int count = 0
    cdef Py_ssize_t sent
    try:
        for data in islice(buffers, 64):
            PyObject_GetBuffer(data, &views[count], PyBUF_SIMPLE)
            parts[count].iov_base = views[count].buf
            parts[count].iov_len = views[count].len
            count += 1
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = count
        while True:
            sent = sendmsg(fd, &message, MSG_NOSIGNAL)
            if sent >= 0:
                return sent
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                return -errno
            PyErr_CheckSignals()
    finally:
        while count:
            count -= 1
            PyBuffer_Release(&views[count])


cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <stddef.h>
    #include <sys/un.h>
    #include <sys/socket.h>
    typedef union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un local;
        struct sockaddr_storage most;
    } shardnet_address;
    """
    struct in_addr:
        unsigned int s_addr
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        unsigned char sin6_addr[16]
        unsigned int sin6_scope_id
    struct sockaddr_un:
        char sun_path[108]
    ctypedef union shardnet_address:
        sockaddr any
        sockaddr_in v4
        sockaddr_in6 v6
        sockaddr_un local
    int accept4(int fd, sockaddr* address, unsigned int* size, int flags) nogil
    unsigned int ntohl(unsigned int number)
    unsigned short ntohs(unsigned short number)
    const char* inet_ntop(int family, const void* address, char* text, unsigned int size)
    enum:
        AF_INET
        AF_INET6
        AF_UNIX
        SOCK_CLOEXEC
        SOCK_NONBLOCK


cpdef accept(listener):
    cdef shardnet_address address
    cdef unsigned int size = sizeof(address)
    cdef int fd
    while True:
        fd = accept4(listener.fileno(), &address.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            return fd, _pack(&address, size)
        if errno == EAGAIN:
            return None
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()


cdef object _pack(shardnet_address* address, unsigned int size):
    """An int for IPv4 and the bytes of the kernel for IPv6, which take a third of what a tuple with its parts does."""
    cdef Py_ssize_t length
    if address.any.sa_family == AF_INET:
        return <unsigned long long>ntohl(address.v4.sin_addr.s_addr) << 16 | ntohs(address.v4.sin_port)
    if address.any.sa_family == AF_INET6:
        return PyBytes_FromStringAndSize(<char*>&address.v6, sizeof(sockaddr_in6))
    if address.any.sa_family != AF_UNIX or size <= 2:
        return ""
    length = size - 2
    if address.local.sun_path[0] == 0:
        return bytearray(address.local.sun_path[:length])  # Not bytes: see `address_of`.
    return os.fsdecode(address.local.sun_path[:length].split(b"\0")[0])


def address_of(peer):
    cdef char text[64]
    cdef sockaddr_in6* v6
    cdef unsigned long long number
    cdef unsigned int v4
    if isinstance(peer, int):
        number = peer
        return f"{number >> 40}.{number >> 32 & 255}.{number >> 24 & 255}.{number >> 16 & 255}", <int>(number & 0xFFFF)
    if isinstance(peer, bytes):
        v6 = <sockaddr_in6*>PyBytes_AS_STRING(peer)
        inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text))
        host = (<bytes>text).decode("ascii")
        return host, ntohs(v6.sin6_port), ntohl(v6.sin6_flowinfo), v6.sin6_scope_id
    return bytes(peer) if isinstance(peer, bytearray) else peer


cpdef close(int fd):
    if c_close(fd) < 0:
        PyErr_SetFromErrno(OSError)
