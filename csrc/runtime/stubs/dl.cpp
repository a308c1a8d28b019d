// Linked in place of libdl.so.2: since glibc 2.34 dlopen is defined anew in libc.so.6, and a library linked
// against that asks for 2.34. libdl.so.2 has had it since 2.2.5 and still does. Never shipped, never called.
extern "C" {
void dlopen() {}
void dlsym() {}
void dlerror() {}
}
