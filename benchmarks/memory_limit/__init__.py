"""An endpoint near its memory limit, under real limits of the kernel: who sends it heavy work, and what is killed?"""
