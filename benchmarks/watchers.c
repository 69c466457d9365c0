/* Many watchers of one feed, in one thread, that count what they get: cc -O2 watchers.c -o watchers
 *
 *   watchers PROTOCOL ADDRESS CONNECTIONS HELLO REPLY COUNT
 *
 * Opens CONNECTIONS to ADDRESS (the path of a unix socket, or 127.0.0.1:PORT) and sends each the file HELLO, and the
 * file REPLY once the first bytes came back. PROTOCOL is how messages are found in what comes:
 *   json   in any HTTP or WebSocket framing: a message is a text that says "afterRevision":"N","revision":"M"
 *   grpc   HTTP/2 DATA frames of one stream; fields 1 and 2 of a message are N and M
 *   etcd   the same, but COUNT deliveries are counted as the entries of field 11, and nothing joins up
 * The first message of a watcher says where it begins; every later one must begin where the one before ended, or all
 * fails with exit code 4. When all have their first message, says "ready". When all have come COUNT revisions further:
 * "SECONDS BYTES MESSAGES", from the first message that covers any revision to the last.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

enum { READ = 1 << 18, TAIL = 96, SILENCE_MS = 30000 };
enum protocol { JSON, GRPC, ETCD };

/* Where in the frames of HTTP/2, in the messages of gRPC and in the fields of protobuf the last read ended. */
struct place {
    uint8_t head[9]; uint32_t head_has, frame_left; int is_data;
    uint8_t prefix[5]; uint32_t prefix_has, message_left;
    uint64_t number; uint32_t shift, field, skip; int wants_value;
};
struct watcher {
    int socket, replied, started, complete;
    int64_t from, after, revision, start, reached;
    size_t kept; char tail[TAIL];
    struct place at;
};

static enum protocol protocol;
static uint32_t count, started, complete;
static int64_t goal;
static uint64_t bytes, messages;
static double began, ended;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* A message of *it* covers (after, revision]. */
static void take(struct watcher *it, int64_t after, int64_t revision) {
    if (!it->started) {
        it->started = 1;
        it->start = it->reached = after;
        if (++started == count) { puts("ready"); fflush(stdout); }
    }
    if (protocol != ETCD && after != it->reached) {
        fprintf(stderr, "a message begins at %lld, the one before ended at %lld\n", (long long)after,
                (long long)it->reached);
        exit(4);
    }
    it->reached = revision;
    if (revision == after) return;
    messages++;
    ended = now();
    if (!began) began = ended;
    if (!it->complete && it->reached - it->start >= goal) { it->complete = 1; complete++; }
}

static void message_ends(struct watcher *it) {
    if (protocol == ETCD) take(it, it->reached, it->started ? it->reached + it->from : 0);
    else take(it, it->after, it->revision);
    it->from = it->after = it->revision = 0;
}

/* The top level of a protobuf message: numbers of fields 1 and 2, and how many times there is a field 11. */
static void fields(struct watcher *it, const uint8_t *from, uint32_t length) {
    struct place *at = &it->at;
    while (length) {
        if (at->skip) {
            uint32_t step = at->skip < length ? at->skip : length;
            at->skip -= step; from += step; length -= step;
            continue;
        }
        uint8_t byte = *from++;
        length--;
        at->number |= (uint64_t)(byte & 127) << at->shift;
        at->shift += 7;
        if (byte & 128) continue;
        uint64_t number = at->number;
        at->number = at->shift = 0;
        if (!at->wants_value) {
            at->field = number;
            at->wants_value = 1;
            continue;
        }
        at->wants_value = 0;
        if ((at->field & 7) == 2) at->skip = number;
        else if (at->field == (1 << 3)) it->after = number;
        else if (at->field == (2 << 3)) it->revision = number;
        if (at->field == ((11 << 3) | 2)) it->from++;
    }
}

static void grpc(struct watcher *it, const uint8_t *from, size_t length) {
    struct place *at = &it->at;
    while (length) {
        if (at->head_has < 9) {
            at->head[at->head_has++] = *from++;
            length--;
            if (at->head_has == 9) {
                at->frame_left = at->head[0] << 16 | at->head[1] << 8 | at->head[2];
                at->is_data = at->head[3] == 0;
                if (!at->frame_left) at->head_has = 0;
            }
            continue;
        }
        uint32_t step = at->frame_left < length ? at->frame_left : length;
        const uint8_t *payload = from;
        from += step; length -= step; at->frame_left -= step;
        if (!at->frame_left) at->head_has = 0;
        while (at->is_data && step) {
            if (at->prefix_has < 5) {
                at->prefix[at->prefix_has++] = *payload++;
                step--;
                if (at->prefix_has == 5) {
                    at->message_left = (uint32_t)at->prefix[1] << 24 | at->prefix[2] << 16 | at->prefix[3] << 8 | at->prefix[4];
                    if (!at->message_left) { at->prefix_has = 0; message_ends(it); }
                }
                continue;
            }
            uint32_t part = at->message_left < step ? at->message_left : step;
            fields(it, payload, part);
            payload += part; step -= part; at->message_left -= part;
            if (!at->message_left) { at->prefix_has = 0; message_ends(it); }
        }
    }
}

/* `text` and what was kept of the read before it; what may be the beginning of a position is kept. */
static void json(struct watcher *it, char *text, size_t length) {
    static const char after[] = "\"afterRevision\":\"", revision[] = "\",\"revision\":\"";
    char *from = text, *end = text + length, *found, *rest;
    while ((found = memmem(from, end - from, after, sizeof after - 1)) && end - found >= TAIL - 1) {
        int64_t first = strtoll(found + sizeof after - 1, &rest, 10);
        if (memcmp(rest, revision, sizeof revision - 1)) { fprintf(stderr, "not a position\n"); exit(4); }
        take(it, first, strtoll(rest + sizeof revision - 1, &rest, 10));
        from = rest;
    }
    if (!found && (size_t)(end - from) >= sizeof after) from = end - (sizeof after - 1);
    if (found) from = found;
    it->kept = end - from;
    memcpy(it->tail, from, it->kept);
}

int main(int argc, char **argv) {
    if (argc != 7) { fprintf(stderr, "usage: see the head of watchers.c\n"); return 2; }
    protocol = !strcmp(argv[1], "json") ? JSON : !strcmp(argv[1], "grpc") ? GRPC : ETCD;
    count = strtoul(argv[3], 0, 10);
    goal = strtoll(argv[6], 0, 10);
    size_t hello_length, reply_length;
    char *hello = slurp(argv[4], &hello_length), *reply = slurp(argv[5], &reply_length);
    struct watcher *watchers = calloc(count, sizeof *watchers);
    static char buffer[TAIL + READ];
    struct rlimit files = {count + 64, count + 64};
    int poll = epoll_create1(0);
    setrlimit(RLIMIT_NOFILE, &files);
    for (uint32_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        watchers[i].socket = dial(argv[2]);
        if (write(watchers[i].socket, hello, hello_length) != (ssize_t)hello_length) die("hello");
        epoll_ctl(poll, EPOLL_CTL_ADD, watchers[i].socket, &event);
    }
    while (complete < count) {
        struct epoll_event events[256];
        int found = epoll_wait(poll, events, 256, SILENCE_MS);
        if (!found) { fprintf(stderr, "nothing comes any more: %u of %u complete\n", complete, count); return 3; }
        for (int e = 0; e < found; e++) {
            struct watcher *it = &watchers[events[e].data.u32];
            memcpy(buffer, it->tail, it->kept);
            ssize_t got = read(it->socket, buffer + it->kept, READ);
            if (got <= 0) { fprintf(stderr, "connection %u was closed\n", events[e].data.u32); return 3; }
            if (began) bytes += got;
            if (!it->replied) {
                it->replied = 1;
                if (reply_length && write(it->socket, reply, reply_length) != (ssize_t)reply_length) die("reply");
            }
            if (protocol == JSON) json(it, buffer, it->kept + got);
            else grpc(it, (uint8_t *)buffer, got);
        }
    }
    printf("%.6f %llu %llu\n", ended - began, (unsigned long long)bytes, (unsigned long long)messages);
    return 0;
}
