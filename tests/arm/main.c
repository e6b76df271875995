/* Run one kernel on the arguments in a file: main IN OUT.

   IN    int64 tasks, buffers, arguments
         int64 bytes, and the bytes, of every buffer
         int64 buffer (-1 = a number) and int64 offset in bytes, or the number, of every argument
   OUT   the bytes of every buffer, in order */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 64 };

extern void kernel(void *slots, int64_t begin, int64_t end);

static void take(void *into, size_t bytes, FILE *from) {
    if (fread(into, 1, bytes, from) != bytes) exit(2);
}

int main(int count, char **names) {
    if (count != 3) return 2;
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    if (!in || !out) return 2;
    int64_t head[3], bytes[MOST], argument[2], slots[MOST];
    char *buffers[MOST];
    take(head, sizeof head, in);
    if (head[1] > MOST || head[2] > MOST) return 2;
    for (int i = 0; i < head[1]; i++) {
        take(&bytes[i], 8, in);
        buffers[i] = aligned_alloc(64, (bytes[i] + 63) / 64 * 64);
        take(buffers[i], bytes[i], in);
    }
    for (int i = 0; i < head[2]; i++) {
        take(argument, sizeof argument, in);
        slots[i] = argument[0] < 0 ? argument[1] : (int64_t)(buffers[argument[0]] + argument[1]);
    }
    kernel(slots, 0, head[0]);
    for (int i = 0; i < head[1]; i++) fwrite(buffers[i], 1, bytes[i], out);
    return fclose(out) != 0;
}
