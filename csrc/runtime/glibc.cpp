// Since 2.32 glibc tells libstdc++ whether the process has one thread, and a static libstdc++ built there
// asks for that symbol version. Our own definition keeps the floor at the functions that we call; "no" is
// always right.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
