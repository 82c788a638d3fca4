from shardnet.connection.stream cimport Stream

cdef int LATE, QUEUED, SENT

cdef class Writing:
    pass

cdef int _write(Stream conn, data) except -1
