/* Run one kernel on the arguments in a file: main IN OUT.

   IN    int64 tasks, int64 arguments; then for each argument int64 bytes (0 = a number), and its bytes,
         8 of them if it is a number
   OUT   the bytes of every buffer, in order */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern void kernel(void *slots, int64_t begin, int64_t end);

static void take(void *into, size_t bytes, FILE *from) {
    if (fread(into, 1, bytes, from) != bytes) exit(2);
}

int main(int count, char **names) {
    if (count != 3) return 2;
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    if (!in || !out) return 2;
    int64_t head[2], bytes[64];
    union { void *buffer; int64_t number; } slots[64];
    take(head, sizeof head, in);
    if (head[1] > 64) return 2;
    for (int i = 0; i < head[1]; i++) {
        take(&bytes[i], 8, in);
        if (bytes[i]) {
            slots[i].buffer = aligned_alloc(64, (bytes[i] + 63) / 64 * 64);
            take(slots[i].buffer, bytes[i], in);
        } else {
            take(&slots[i], 8, in);
        }
    }
    kernel(slots, 0, head[0]);
    for (int i = 0; i < head[1]; i++)
        if (bytes[i]) fwrite(slots[i].buffer, 1, bytes[i], out);
    return fclose(out) != 0;
}
